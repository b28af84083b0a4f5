"The quickstart is the recipe of the demo, and its figures come from a run"
import nbformat
from conftest import root
from qlora_nb import parse
from qlora_nb.facts.demo import CONFIG

def test_the_cell_is_the_recipe():
    cells = [c.source for c in nbformat.read(root/'nbs'/'examples'/'quickstart.ipynb', 4).cells if c.source.startswith('%%qlora_config')]
    assert len(cells)==1 and parse(cells[0]).flat==parse(CONFIG).flat
