"One line for each problem, and the word that was probably meant"
from functools import cache
from hypothesis import given, settings, strategies as st
import pytest
from qlora_nb.errors import Problem, QLoRAError, edit_distance, levenshtein, nearest, within

WORDS = st.text('abcd_', max_size=7)

@cache
def plain(a, b): # the textbook recursion, independent of the table in the code
    if not a or not b: return len(a)+len(b)
    return min(plain(a[1:], b)+1, plain(a, b[1:])+1, plain(a[1:], b[1:])+(a[0]!=b[0]))

@cache
def swaps(a, b):
    if not a or not b: return len(a)+len(b)
    best = min(swaps(a[1:], b)+1, swaps(a, b[1:])+1, swaps(a[1:], b[1:])+(a[0]!=b[0]))
    return min(best, swaps(a[2:], b[2:])+1) if a[:2]==b[1::-1] and len(a)>1 and len(b)>1 else best

@settings(max_examples=300, deadline=None)
@given(WORDS, WORDS)
def test_distances(a, b):
    assert levenshtein(a, b)==levenshtein(b, a)==plain(a, b)
    assert edit_distance(a, b)==edit_distance(b, a)==swaps(a, b)<=levenshtein(a, b)<=2*edit_distance(a, b)

@settings(max_examples=300, deadline=None)
@given(st.text('abcd_', min_size=4, max_size=7), st.lists(WORDS, max_size=5, unique=True))
def test_the_single_nearest_word_is_found_by_either_measure(word, options):
    for measure in (plain, swaps):
        near = sorted((measure(word, o), o) for o in options)
        if near and near[0][0]<=2 and (len(near)==1 or near[1][0]>near[0][0]): assert within(word, options)==nearest(word, options)==near[0][1]
    if all(swaps(word, o)>2 for o in options): assert within(word, options) is None

@pytest.mark.parametrize('word, options, meant', [
    ('quantizaton', ['model', 'data', 'quantization'], 'quantization'), ('NF4', ['fp4', 'nf4'], 'nf4'), ('all_linear', ['all-linear'], 'all-linear'),
    ('Learning-Rate', ['learning_rate', 'warmup_steps'], 'learning_rate'), ('double_quant', ['bnb_4bit_quant_type', 'bnb_4bit_use_double_quant'], 'bnb_4bit_use_double_quant'),
    ('rr', ['r', 'lora_alpha'], 'r'), ('xy', ['r', 'ab'], None), ('', ['r'], None), ('zebra', ['nf4'], None), ('word', [], None)])
def test_nearest(word, options, meant): assert nearest(word, options)==meant

def test_long_and_strange_words(): assert nearest('x'*100_000, ['y'*100_000]) is None and nearest(4, [4, 8])=='4' and nearest(None, ['none'])=='none'

def test_lines():
    p = Problem('no such\nfile.', 'data.train', 3, 'a.jsnl', 'a.jsonl')
    assert str(p)=="line 3, data.train: no such file. Did you mean 'a.jsonl'?"
    one,two = QLoRAError('stop', key='lora.r', value=0),QLoRAError('two things', [p, Problem('stop')])
    assert str(one)=='lora.r: stop' and one.errors[0].value==0 and one.headline==''
    assert two.lines==['two things', f'  {p}', '  stop'] and two._render_traceback_()==[f'QLoRAError: two things\n  {p}\n  stop']

def test_a_notebook_shows_the_line_and_stops(capsys):
    from IPython.core.interactiveshell import InteractiveShell
    result = InteractiveShell().run_cell('from qlora_nb.errors import QLoRAError\nraise QLoRAError("no", key="lora.r", line=2)')
    assert capsys.readouterr().out=='QLoRAError: line 2, lora.r: no\n' and isinstance(result.error_in_exec, QLoRAError)
