from digits import DigitsData, DigitsNet

from lightning_hpo import HPOCLI

if __name__ == "__main__":
    HPOCLI(DigitsNet, DigitsData)
