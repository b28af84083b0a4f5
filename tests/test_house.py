"The house stands: no circle, no arrow that points up, no folder with a public verb's name, and figures within their limits"
import pytest, qlora_nb, sys
from pathlib import Path
from types import ModuleType
from conftest import root

sys.path.insert(0, str(root/'tools'))
import house

@pytest.fixture(scope='module')
def figures(): return house.measure()

def test_the_house_stands(figures): assert list(house.faults(figures))==[]

def plant(tmp_path, **modules):
    for name,text in modules.items():
        path = tmp_path/'qlora_nb'/Path(*name.split('__')).with_suffix('.py')
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return house.graph(tmp_path)

def test_a_planted_arrow_is_found(tmp_path):
    "Imports inside functions, relative ones and imports of a whole room count"
    for text in ('from ..training.run import Run', 'def f():\n    from qlora_nb.training import run', 'import qlora_nb.training.run as r'):
        assert house.forbidden(plant(tmp_path, facts__models=text, training__run=''))==[('qlora_nb.facts.models', 'qlora_nb.training.run')]
    assert house.forbidden(plant(tmp_path, facts__models='', training__run='from ..facts.models import find'))==[]
    assert house.forbidden(plant(tmp_path, data__rows='from ..methods.lora import LORA', methods__lora=''))!=[]

def test_a_planted_circle_is_found(tmp_path):
    edges = plant(tmp_path, data__a='from .b import x', data__b='from .c import x', data__c='def f(): from .a import x')
    assert house.circles(edges)==[['qlora_nb.data.a', 'qlora_nb.data.b', 'qlora_nb.data.c']]

def test_planted_density_is_found(tmp_path):
    plant(tmp_path, data__a='x = '+'+'.join(['1']*60)+'\n'+'\n'.join(f'y{n} = f(lambda: {n})' for n in range(50)))
    figures = house.measure(tmp_path)
    assert figures['lambdas']>900 and figures['long_percent']>1
    plant(tmp_path, data__a='class Run: pass\ndef _event(run): pass\nRun.event = _event\nT = type("T", (), {})\na,b,c,d = 1,2,3,4\n')
    figures = house.measure(tmp_path)
    assert figures['patched']==figures['built']==['qlora_nb.data.a'] and figures['tuples']==200

def test_what_is_planted_is_named(tmp_path):
    "A verb of the package counts as its module; a room or a folder may not bear a verb's name"
    lines = '\n'.join(['x = 1']*300)
    plant(tmp_path, planning__planner='', store__files='def f(): from .. import plan', data__long=lines,
        data__longer=lines+'\ny = 1', data__b='import types\nT = types.new_class("T")\nclass Q: pass\nQ.y: int = 1', plan='', extra__a='', facts__b='from ..extra import a')
    (tmp_path/'qlora_nb'/'__init__.py').write_text("_homes = dict(plan='planning.planner')")
    assert sorted(house.faults(house.measure(tmp_path), tmp_path))==sorted([
        'qlora_nb.store.files imports qlora_nb.planning.planner, which is no lower floor', 'qlora_nb.facts.b imports qlora_nb.extra.a, which is no lower floor',
        'the folder extra has no floor in tools/house.py', 'qlora_nb.data.longer has 301 lines, at most 300', 'qlora_nb.data.b builds a class by a call',
        'qlora_nb.data.b sets attributes of a class from outside', 'qlora_nb/plan.py bears the name of a public verb'])

def test_no_verb_is_a_module():
    "With a folder `plan/`, `from qlora_nb import plan` would give the module"
    assert not any(isinstance(getattr(qlora_nb, name), ModuleType) for name in qlora_nb.__all__)
    assert not {p.stem for p in (root/'qlora_nb').iterdir()} & {'export', 'evaluate', 'launch', 'sweep', 'load'}

def test_no_folder_is_skipped_as_a_lesson():
    "`make test` skips the notebooks of folders that match this pattern"
    assert not [p.name for p in (root/'qlora_nb').iterdir() if p.is_dir() and ('examples' in p.name or 'course' in p.name)]
