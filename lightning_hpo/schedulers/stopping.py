class MedianStopping: pass
