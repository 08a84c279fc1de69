import lightning as L

TEXT = "a logger"


class Long(L.Callback):
    pass
