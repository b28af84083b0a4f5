"The lessons run, each figure that they state is checked by them, and the exercises' checkers know right from wrong"
import ast, sys, time
from math import isfinite
import nbformat, pytest
from conftest import root
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient
from qlora_nb.errors import QLoRAError
from qlora_nb.teach.lesson import attempt, check, exercise, exercises

LESSONS = sorted((root/'nbs'/'course').glob('[0-9][0-9]_*.ipynb'))
EXERCISES = sorted(exercises())
sys.path.insert(0, str(root/'tools'))
import answers
lesson = pytest.mark.parametrize('path', LESSONS, ids=lambda p: p.stem)
each = pytest.mark.parametrize('name', EXERCISES)

def code(nb): return [c for c in nb.cells if c.cell_type=='code']
def calls(cell, name):
    "The calls of a function in a cell, and those of them that are statements of their own"
    tree = ast.parse(TransformerManager().transform_cell(cell.source))
    def hit(n): return isinstance(n, ast.Call) and getattr(n.func, 'id', '')==name
    return [n for n in ast.walk(tree) if hit(n)],[s.value for s in tree.body if isinstance(s, ast.Expr) and hit(s.value)]

def other(v, tol):
    "A constant changed a little: by three times the stated precision, or where there is none by one or a thousandth"
    if isinstance(v, bool): return not v
    if isinstance(v, str): return v+'?'
    return v+3*tol if tol else v+1 if isinstance(v, int) else v*1.001 or 1e-3

def mutants(call):
    "The claim with one of its stated constants changed, for each of them"
    tol = next((ast.literal_eval(k.value) for k in call.keywords if k.arg=='tol'), ast.literal_eval(call.args[3]) if len(call.args)>3 else 0)
    for node in [n for n in ast.walk(call.args[1]) if isinstance(n, ast.Constant)]:
        was,node.value = node.value,other(node.value, tol)
        yield ast.unparse(call)
        node.value = was

def added(source, **metadata): return nbformat.v4.new_code_cell(source, metadata=metadata)
def outputs(cell): return ''.join(o.get('text', '') for o in cell.outputs if o.output_type=='stream')

@pytest.fixture(scope='module')
def ran(tmp_path_factory):
    "Each lesson run once, with a changed copy of every claim after the cell that makes it, and every exercise solved at the end"
    done = {}
    def run(path):
        if path in done: return done[path]
        nb,cells = nbformat.read(path, 4),[]
        for c in nb.cells:
            cells.append(c)
            if c.cell_type=='code': cells += [added(m, tags=['raises-exception'], mutant=True) for call in calls(c, 'claim')[1] for m in mutants(call)]
        for n in asked(nb): cells.append(added(f"{exercise(n).solution}\ncheck({n!r}, {n})", solves=n))
        nb.cells,t = cells,time.perf_counter()
        NotebookClient(nb, timeout=1500, kernel_name='python3', resources=dict(metadata=dict(path=str(tmp_path_factory.mktemp(path.stem))))).execute()
        done[path] = nb,time.perf_counter()-t
        return done[path]
    return run

def asked(nb): return [ast.literal_eval(c.args[0]) for cell in code(nb) for c in calls(cell, 'exercise')[0]]
def claimed(nb): return [c for cell in code(nb) for c in calls(cell, 'claim')[1]]

@pytest.mark.slow
@lesson
def test_runs_and_every_stated_figure_matters(path, ran):
    nb,seconds = ran(path)
    kept = [outputs(c) for c in code(nb) if c.metadata.get('mutant')]
    passed = [c.source for c in code(nb) if c.metadata.get('mutant') and not any(o.output_type=='error' and o.ename=='QLoRAError' for o in c.outputs)]
    assert not passed and not ''.join(kept).strip()
    print(f'\n{path.stem}: {seconds:.0f} s with {len(kept)} changed copies of {len(claimed(nbformat.read(path, 4)))} claims')

@pytest.mark.slow
@lesson
def test_solutions_are_right_in_the_lesson(path, ran):
    for c in code(ran(path)[0]):
        if n := c.metadata.get('solves'): assert outputs(c).startswith(f'✓ {n}'), outputs(c)

@lesson
def test_claims(path):
    "Eight or more, each a statement of its own with its figure and its sentence written out"
    nb = nbformat.read(path, 4)
    all_calls = [c for cell in code(nb) for c in calls(cell, 'claim')[0]]
    whats = [ast.literal_eval(c.args[2]) for c in claimed(nb)]
    assert len(whats)==len(all_calls)>=8 and len(set(whats))==len(whats)
    for c in claimed(nb): assert {type(n) for n in ast.walk(c.args[1])}.isdisjoint({ast.Name, ast.Call}) and list(mutants(c)), ast.unparse(c)
    print(f'\n{path.stem}: {len(whats)} claims', *whats, sep='\n  ')

@lesson
def test_form(path):
    "A title, a line below it, exercises, and a list of what was shown"
    nb = nbformat.read(path, 4)
    first = nb.cells[0].source.splitlines()
    assert 20<=len(nb.cells)<=45 and first[0].startswith(f'# {path.name[:2]} ') and first[2].startswith('> ')
    assert len(asked(nb))>=3 and '## Recap' in ''.join(c.source for c in nb.cells) and nb.cells[-1].source=='claims()'
    assert {ast.literal_eval(c.args[0]) for cell in code(nb) for c in calls(cell, 'check')[0]}==set(asked(nb))

BLOCKED = 'import sys\nfor name in ("torch", "bitsandbytes", "transformers", "peft", "trl", "accelerate"): sys.modules[name] = None'

@pytest.mark.parametrize('path', LESSONS[1:5], ids=lambda p: p.stem)
def test_lessons_about_numbers_run_without_torch(path, tmp_path):
    "The few cells that need it say so in one line, and *Run All* goes on"
    nb = nbformat.read(path, 4)
    nb.cells.insert(0, added(BLOCKED))
    NotebookClient(nb, timeout=600, kernel_name='python3', resources=dict(metadata=dict(path=str(tmp_path)))).execute()
    lacking = [c for c in code(nb) if '○ this cell needs ' in outputs(c)]
    assert len(lacking)<=5 and all(outputs(c).splitlines()[-1].endswith('Cells without it run all the same') for c in lacking)
    assert bool(lacking)!=path.stem.startswith('03') and not [o for c in code(nb) for o in c.outputs if o.output_type=='error']
    assert sum(outputs(c).count('✓') for c in code(nb))>=10

@lesson
def test_a_lesson_is_saved_without_its_answers(path):
    nb = nbformat.read(path, 4)
    revealing = [c for c in code(nb) if 'reveal(' in c.source]
    assert all(c.metadata.get('jupyter')==dict(source_hidden=True) and c.metadata.get('cellView')=='form' for c in revealing)
    assert not answers.hidden(nb) and (not revealing or answers.INSTEAD in ''.join(map(outputs, revealing)))

@lesson
def test_stored_outputs(path):
    "Those of this text: every claim is printed, nothing failed, nothing needs a kernel, and the file is small"
    nb = nbformat.read(path, 4)
    everything = [o for c in code(nb) for o in c.outputs]
    assert not [o for o in everything if o.output_type=='error' or o.get('name')=='stderr']
    assert not [m for o in everything for m in o.get('data', ()) if 'widget' in m or 'javascript' in m]
    said = ''.join(outputs(c) for c in code(nb))
    assert not [w for c in claimed(nb) if f'✓ {(w:=ast.literal_eval(c.args[2]))}: ' not in said]
    assert path.stat().st_size<600_000 and not nb.metadata.get('widgets')

@lesson
def test_links_lead_somewhere(path):
    text = ''.join(c.source for c in nbformat.read(path, 4).cells if c.cell_type=='markdown')
    there = {p.name for p in LESSONS}
    for link in [l.split(')')[0] for l in text.split('](')[1:]]:
        if not link.startswith('https://'): assert (path.parent/link).exists() or link not in there and int(link[:2])>len(LESSONS), link

def test_every_exercise_is_used_once():
    used = [n for p in LESSONS for n in asked(nbformat.read(p, 4))]
    assert len(used)==len(set(used)) and set(used)<=set(EXERCISES)

@each
def test_solution_is_accepted(name, capsys):
    check(name, attempt(name, exercise(name).solution))
    assert capsys.readouterr().out.startswith(f'✓ {name}')

@each
def test_mistakes_are_told_by_their_property(name, capsys):
    e = exercise(name)
    assert len(e.mistakes)>=3 and len(e.hints)==3 and len(set(e.hints))==3
    for i,(source,prop) in enumerate(e.mistakes.items()):
        e.tries = i
        check(name, attempt(name, source))
        said = capsys.readouterr().out
        assert said.startswith(f'✗ {name} lacks a property. {prop}:') and f'Hint {min(i+1, 3)} of 3' in said, said

@each
@pytest.mark.parametrize('answer', [None, 'text', 3, float('nan'), [], object(), lambda: None, lambda *a: None, lambda *a: 1/0, lambda *a: 'x', lambda *a, **k: [[1], 2]])
def test_no_answer_breaks_the_checker(name, answer, capsys):
    check(name, answer)
    said = capsys.readouterr().out
    assert said.startswith(f'✗ {name}') and 'Traceback' not in said

@each
def test_card_folds_what_helps(name):
    e = exercise(name)
    page = e._repr_html_()
    assert page.count('<details')==2+len(e.hints) and e.solution not in str(e) and e.task in str(e)

def test_unknown_exercise_is_answered():
    with pytest.raises(QLoRAError, match="no exercise 'scael'.*'scale'"): exercise('scael')

def test_unwritten_answer_is_no_mistake(capsys):
    from qlora_nb.teach.lesson import todo
    tries = exercise('scale').tries
    for answer in (todo, lambda x: todo): check('scale', answer)
    assert capsys.readouterr().out.count('nothing to check yet')==2 and exercise('scale').tries==tries

@pytest.mark.parametrize('source,count', [("claim(x, 5, 'a')", 1), ("claim(x, (1, True), 'a')", 2), ("claim(x, -2.5, 'a', tol=.1)", 1), ("claim(x, 'NF4', 'a')", 1)])
def test_mutants_change_one_constant(source, count):
    call = ast.parse(source).body[0].value
    changed = list(mutants(call))
    assert len(changed)==count and source not in changed and ast.unparse(call)==ast.unparse(ast.parse(source))

def test_changes_are_small(): assert other(.5, .01)==.53 and other(3, 0)==4 and isfinite(other(0., 0)) and other(True, 0) is False
