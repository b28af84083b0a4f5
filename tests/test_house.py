"The house stands: no circle, no arrow that points up, no folder with a public verb's name, and figures within their limits"
import pytest, qlora_nb, sys
from pathlib import Path
from types import ModuleType
from conftest import root

sys.path.insert(0, str(root/'tools'))
import house

@pytest.fixture(scope='module')
def figures(): return house.measure()

def test_no_room_imports_in_a_circle(figures): assert figures['circles']==[]
def test_every_arrow_points_down(figures): assert figures['forbidden']==[]
def test_every_folder_has_a_floor(figures): assert figures['rooms'].keys()<={f for floor in house.FLOORS for f in floor}
def test_a_folder_has_at_most_12_rooms(figures): assert max(figures['rooms'].values())<=house.LIMITS['rooms']
def test_no_module_is_over_300_lines(figures): assert figures['large']=={}
def test_no_module_is_dense(figures): assert figures['dense']=={}
def test_no_class_is_built_by_type_or_patched_together(figures): assert (figures['built'], figures['patched'])==(0, 0)

@pytest.mark.parametrize('name', ['mean_tokens', 'long_percent', 'tuples', 'lambdas'])
def test_density_is_within_its_budget(figures, name): assert figures[name]<=house.LIMITS[name]

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
    assert figures['patched']==figures['built']==1 and figures['tuples']==200

def test_no_folder_bears_the_name_of_a_public_verb():
    "With a folder `plan/`, `from qlora_nb import plan` would give the module"
    folders = {p.name for p in (root/'qlora_nb').iterdir() if p.is_dir()}
    assert not folders & {*qlora_nb.__all__, 'export', 'evaluate', 'launch', 'sweep', 'load'}
    assert not any(isinstance(getattr(qlora_nb, name), ModuleType) for name in qlora_nb.__all__)

def test_no_folder_is_skipped_as_a_lesson():
    "`make test` skips the notebooks of folders that match this pattern"
    assert not [p.name for p in (root/'qlora_nb').iterdir() if p.is_dir() and ('examples' in p.name or 'course' in p.name)]
