"What a name under `data.train` means: the cell and the reading of rows give the same answer"
import pytest, sys
from qlora_nb.config.cell import parse
from qlora_nb.config.resolve import resolve
from qlora_nb.data.names import meaning
from qlora_nb.data.sources import parts
from qlora_nb.errors import QLoRAError

ROW = '{"prompt": "a", "completion": "b"}\n'
ROWS = [dict(prompt='a', completion='b')]
SPACE = dict(rows=ROWS, both=ROWS, folder=ROWS, text='tickets.jsonl', number=4, nothing=None, os=sys, f=len, _last=ROWS)

def cell(name): return resolve(parse(f'model: demo\ndata:\n  train: "{name}"'), SPACE)
def read(name): return parts(name, SPACE)

@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('tickets.jsonl', 'rows.csv', 'both', 'own/a.jsonl', 'own/b.jsonl'):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        (tmp_path/name).write_text('prompt,completion\na,b\n' if name.endswith('.csv') else ROW)
    for name in ('folder', 'empty'): (tmp_path/name).mkdir()

@pytest.mark.parametrize('name,kind,found', [('demo', 'demo', ['demo train', 'demo heldout']), ('tickets.jsonl', 'file', ['tickets.jsonl']), ('./rows.csv', 'file', ['rows.csv']),
    ('own', 'folder', ['a.jsonl', 'b.jsonl']), ('own/*.jsonl', 'files', ['a.jsonl', 'b.jsonl']), ('rows', 'variable', ['rows']), ('folder', 'variable', ['folder']), ('_last', 'variable', ['_last'])])
def test_both_doors_find_the_same(name, kind, found):
    assert meaning(name, SPACE).kind==kind and cell(name).kinds=={'data.train': kind} and [p.name for p in read(name)]==found

@pytest.mark.parametrize('name,words,suggestion', [('rows.pq', 'no such file: rows.pq.', None), ('lost.pq', 'no such file: lost.pq.', None), ('tickets.jsnl', 'no such file', 'tickets.jsonl'),
    ('own/c.json.gz', 'no such file', None), ('./tickets.json', 'no such file', './tickets.jsonl'), ('no/such/dir/a.csv', 'no such folder: no/such/dir', None),
    ('both', "'both' is both a file and a variable: write ./both, or rename the variable", None), ('./empty', 'is an empty folder', None), ('*.pq', "no file matches '*.pq'", None),
    ('text', 'text must be a DataFrame, a list of dicts, a dict of columns or of splits, or a Dataset, got a value of type str', None), ('number', 'got a value of type int', None),
    ('nothing', 'got a value of type NoneType', None), ('os', 'got a value of type module', None), ('f', 'got a value of type builtin_function_or_method', None), ('a b', 'is not a file, a variable or a Hub id', None)])
def test_both_doors_refuse_the_same(name, words, suggestion):
    problems = []
    for door in (cell, read):
        with pytest.raises(QLoRAError) as e: door(name)
        problems += e.value.errors
    told,raised = problems
    assert words in told.message==raised.message and told.suggestion==raised.suggestion==suggestion
    assert (told.key, told.line, told.value, raised.value)==('data.train', 3, name, name)

def test_a_hub_id_is_no_path(monkeypatch):
    from qlora_nb.data import sources
    monkeypatch.setattr(sources, 'hub_parts', lambda *asked: asked)
    for name in ('squad', 'timdettmers/openassistant-guanaco', 'org/model-1.5', 'org/v0.1', 'org/wiki.de'):
        assert cell(name).kinds=={'data.train': 'hub'} and read(name)==(name, None, None)

def test_a_word_close_to_a_variable_is_asked_about():
    assert meaning('row', SPACE).note=='row is neither a file nor a variable, so it is looked for on the Hub. There is a variable rows.'
    assert cell('row').notes==['data.train: '+meaning('row', SPACE).note] and not meaning('squad', SPACE).note and not meaning('_las', SPACE).note

def test_several_names_each_have_their_meaning():
    c = resolve(parse('model: demo\ndata: {train: [rows, tickets.jsonl, demo]}'), SPACE)
    assert c.kinds=={'data.train': 'variable, file, demo'}
    with pytest.raises(QLoRAError, match='data.train: no such file: lost.pq'): resolve(parse('model: demo\ndata: {train: [rows, lost.pq]}'), SPACE)
