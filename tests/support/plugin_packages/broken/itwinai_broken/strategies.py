from itwinai.strategies.registry import StrategyEntry

SILENT = StrategyEntry("silent", "itwinai.strategies.DDPStrategy")
OTHER = StrategyEntry("another", "itwinai.strategies.DDPStrategy", deviation="")


class Classy:
    pass
