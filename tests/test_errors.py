"One line for each problem, and the word that was probably meant"
from functools import cache
from hypothesis import given, settings, strategies as st
import pytest, time
from qlora_nb import inspect, parse, resolve
from qlora_nb.errors import LONGEST, Problem, QLoRAError, edit_distance, levenshtein, nearest, within

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

CELL,LONG,WORDY = 'model: demo\ndata: {train: demo}\n','x'*5000,'word '*1000
TRAIN = 'model: demo\ndata:\n  train: '
WIDE = [{f'column_{i}': i for i in range(3000)}]
NAMED = [{f'{LONG}{i}': i for i in range(30)}]

def bounded(call): # the lines of a refusal
    with pytest.raises(QLoRAError) as e: call()
    assert max(map(len, e.value.lines))<=LONGEST and len(e.value.lines)<=22
    return e.value.lines

@pytest.mark.parametrize('text', [f'model: {LONG}\ndata: {{train: demo}}', f'model: {WORDY}\ndata: {{train: demo}}', f'model: ./{LONG}\ndata: {{train: demo}}',
    TRAIN+WORDY, f'{TRAIN}./{LONG}.csv', f'{TRAIN}"{LONG}*"', f'{TRAIN}"{WORDY}*"', f'{TRAIN}{"a/"*2000}b', f'{CELL}hardware: {{gpu: {LONG}}}', f'{CELL}hardware: {{gpu: {WORDY}}}',
    f'{CELL}lora: {{r: {WORDY}}}', f'{CELL}lora: {{r: {list(range(2000))}}}', f'{CELL}lora: {{r: ${LONG}}}', f'{CELL}training: {{optim: {WORDY}}}', f'{CELL}lora: {{r: “{WORDY}”}}',
    f'{CELL}lora:{WORDY}', f'{CELL}%{LONG}', f'{CELL}{LONG[:900]}: 3', f'{CELL}seed: {"9"*5000}', f'{CELL}lora:\n'+6000*'  r: 8\n'])
def test_a_long_value_is_not_repeated_whole(text): bounded(lambda: resolve(parse(text, namespace={}), {}))

@pytest.mark.parametrize('rows,prompt', [(rows, prompt) for rows in (WIDE, NAMED) for prompt in ('{nothing}', f'{{{LONG[:400]}}}', LONG[:3000])])
def test_thousands_of_columns_are_not_listed(rows, prompt): assert ' more' in bounded(lambda: inspect(rows, prompt=prompt, completion='y'))[0]

@pytest.mark.parametrize('rows,say', [({f'c{i}': [1]*(i%3) for i in range(2000)}, 'c10 1, c11 2 and 1,988 more'),
    ([{'messages': [{'role': 'user', 'content': [WIDE[0]]}]}], 'column_11 and 2,988 more'),
    ([{'messages': [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'tool_calls': WIDE}]}], 'column_11 and 2,988 more')])
def test_what_is_not_listed_is_counted(rows, say): assert say in bounded(lambda: inspect(rows))[0]

def test_rows_of_no_known_form_are_told_in_one_line():
    for rows in (WIDE, NAMED, [{'a': {f'k{i}': str(i) for i in range(2000)}}]): assert max(map(len, inspect(rows).said))<=LONGEST

@pytest.mark.parametrize('call', [lambda: parse(CELL+''.join(f'k{i}: 1\n' for i in range(6000))),
    lambda: parse(CELL, defaults={f'k{i}': 1 for i in range(6000)}), lambda: parse(CELL).with_(**{f'training.k{i}': 1 for i in range(6000)})])
def test_six_thousand_unknown_keys_are_twenty_lines_and_the_number_of_the_rest(call):
    began = time.process_time()
    lines = bounded(call)
    assert lines[0]=='6,000 problems in the configuration' and lines[-1]=='  and 5,980 more' and time.process_time()-began<10
