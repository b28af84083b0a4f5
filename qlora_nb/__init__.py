"QLoRA fine-tuning inside Jupyter: `%load_ext qlora_nb`, or `plan`, `train`, `compare` … from Python"
__version__ = '0.1.0'

_homes = dict(parse='config.cell', resolve='config.resolve', inspect='data.rows', prepare='tokens.gate', plan='planning.planner', train='training.start', resume='training.start',
    compare='results.evaluate', generate='results.evaluate', QLoRAError='errors')
__all__ = list(_homes)

def __getattr__(name):
    "Functions are imported from their module when first asked for, so that importing the package costs nothing"
    if name not in _homes: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module
    return getattr(import_module(f'{__name__}.{_homes[name]}'), name)

def __dir__(): return [*globals(), *__all__]

def load_ipython_extension(ip):
    "`%load_ext qlora_nb`"
    from .ui.magics import load
    load(ip)

def unload_ipython_extension(ip):
    "`%unload_ext qlora_nb`"
    from .ui.magics import unload
    unload(ip)
