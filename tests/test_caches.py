"The caches of rows: private, whole or made again, bounded, and looked at in one line where they cannot be written"
import gzip, json, os, re, shutil, subprocess, sys, time
from pathlib import Path
import pytest, tiny
from qlora_nb.config.cell import parse
from qlora_nb.data import decoding
from qlora_nb.data import rows as rows_room
from qlora_nb.data.rows import inspect
from qlora_nb.errors import QLoRAError
from qlora_nb.store.cache import cache_dir, cache_folder, cache_size, clear_cache, scratch
from qlora_nb.tokens import encoding, gate
from qlora_nb.tokens.gate import prepare
from qlora_nb.training.start import resume, train

GOOD = [dict(prompt=f'where is {i}', completion='here') for i in range(40)]
BAD = '{"prompt": "no answer'

def written(name, rows=GOOD, bad=0):
    Path(name).write_text(''.join(json.dumps(row)+'\n' for row in rows)+(BAD+'\n')*bad)
    return name

def config(train, output='runs', length=512, **data):
    told = ''.join(f', {key}: {value}' for key,value in data.items())
    return parse(f'model: demo\ndata: {{train: {train}{told}}}\ntraining: {{max_length: {length}}}\noutput: {{output_dir: "{output}"}}')

def looked(train='rows.jsonl', tok=None, space=None, **kw): return prepare(config(train, **kw), tok or tiny.tokenizer(), space or {})
def told(data): return list(data.train.dataset),list(data.train.messages),data.notes,str(data)
def mode(path): return oct(path.stat().st_mode&0o777)

@pytest.fixture
def readings(monkeypatch):
    "How often rows are read, and rows encoded"
    counted = dict(read=0, encoded=0)
    def counting(name, f):
        def call(*args, **kw):
            counted[name] += 1
            return f(*args, **kw)
        return call
    monkeypatch.setattr(gate, 'read', counting('read', gate.read))
    monkeypatch.setattr(encoding, '_write', counting('encoded', encoding._write))
    return counted

# ---- a second look

def test_a_second_look_neither_reads_nor_encodes(empty, readings):
    written('rows.jsonl', bad=3)
    first = told(looked())
    assert told(looked())==first and readings==dict(read=1, encoded=1)
    assert 'first: rows.jsonl, line 41: not one JSON object' in ' '.join(first[2])

def test_nor_does_the_same_tokenizer_used_twice(empty, readings):
    "The first look sets its chat template"
    tok = tiny.tokenizer()
    written('rows.jsonl')
    looked(tok=tok), looked(tok=tok)
    assert readings==dict(read=1, encoded=1)

@pytest.mark.parametrize('source', ['demo', 'many', '"many/*.jsonl"', '[rows.jsonl, many]', 'table.csv', 'rows.json'])
def test_every_source_of_files_is_found_again(empty, readings, source):
    os.mkdir('many')
    for name in ('rows.jsonl', 'many/train.jsonl', 'many/test.jsonl'): written(name)
    Path('rows.json').write_text(json.dumps(GOOD))
    Path('table.csv').write_text('question,answer,score\n'+''.join(f'q {i},a {i},1\n' for i in range(20)))
    assert told(looked(source))==told(looked(source)) and readings['read']==1

@pytest.mark.parametrize('change', ['content', 'content of the same size and age', 'system', 'prompt', 'group', 'another file', 'code'])
def test_what_decides_the_rows_makes_them_read_again(empty, readings, change, monkeypatch):
    written('rows.jsonl')
    age = os.stat('rows.jsonl').st_mtime_ns
    looked()
    if change=='content': written('rows.jsonl', GOOD[1:])
    if change.startswith('content of'):
        written('rows.jsonl', [GOOD[0]|dict(prompt='where is x'), *GOOD[1:]])
        os.utime('rows.jsonl', ns=(age, age))
    if change=='code':
        shutil.copytree(Path(rows_room.__file__).parent, 'data', ignore=shutil.ignore_patterns('__pycache__'))
        Path('data/rows.py').write_text('# changed')
        monkeypatch.setattr(rows_room, '__file__', str(empty/'data'/'rows.py'))
    more = dict(system=dict(system='"Be kind"'), prompt=dict(prompt='completion'), group=dict(group='prompt')).get(change, {})
    data = looked(shutil.copy('rows.jsonl', 'other.jsonl') if change=='another file' else 'rows.jsonl', **more)
    assert readings['read']==2 and (not change.startswith('content of') or data.train.messages[0][0]['content']=='where is x')

def test_rows_of_a_variable_are_read_each_time(empty, readings):
    rows = list(GOOD)
    looked('rows', space=dict(rows=rows))
    rows[0] = dict(prompt='new', completion='new')
    assert looked('rows', space=dict(rows=rows)).train.messages[0][0]['content']=='new' and readings['read']==2

def test_splits_and_their_notes_are_found_again(empty, readings):
    os.mkdir('many')
    for name in ('many/train.jsonl', 'many/test.jsonl'): written(name)
    first = looked('many', validation_size=.25)
    again = looked('many', validation_size=.25)
    assert told(first)==told(again) and list(first.validation.dataset)==list(again.validation.dataset) and readings['read']==1
    assert any('many also has test, which is not used' in note for note in looked('many').notes)

# ---- damage

def damage(path, how):
    raw = path.read_bytes()
    if how=='gone': path.unlink()
    else: path.write_bytes({'cut': raw[:len(raw)//2], 'cut at its end': raw[:-8], 'empty': b'', 'zeros': bytes(len(raw))}[how])

@pytest.mark.parametrize('how', ['cut', 'cut at its end', 'empty', 'zeros', 'gone'])
@pytest.mark.parametrize('file', ['encoded/*.npz', 'encoded/*.arrow', 'encoded/*.json', 'rows/*/rows.arrow', 'rows/*/rows.json'])
def test_a_damaged_cache_is_made_again(empty, file, how, readings):
    written('rows.jsonl', bad=2)
    first = told(looked())
    path, = cache_dir().glob(file)
    damage(path, how)
    assert told(looked())==first
    assert readings==(dict(read=1, encoded=2) if file.startswith('encoded') else dict(read=2, encoded=1))
    assert told(looked())==first and sum(readings.values())==3

def test_an_arrow_file_cut_between_two_batches_is_made_again(empty, readings):
    "Arrow reads such a file without an error, as one with fewer rows"
    import pyarrow as pa
    written('rows.jsonl', GOOD*60)
    first = told(looked())
    path, = cache_dir().glob('encoded/*.arrow')
    with pa.OSFile(str(path)) as file:
        stream = pa.ipc.open_stream(file)
        batches = list(stream)
    with pa.OSFile(str(path), 'wb') as file, pa.ipc.new_stream(file, stream.schema) as out: out.write_batch(batches[0])
    assert len(batches)>1 and told(looked())==first and readings['encoded']==2

def test_a_kill_while_numbers_are_written_leaves_no_part_under_their_name(empty, monkeypatch):
    import numpy as np
    def killed(file, **arrays):
        (file if hasattr(file, 'write') else open(file, 'wb')).write(b'PK')
        raise KeyboardInterrupt
    written('rows.jsonl')
    with monkeypatch.context() as m:
        m.setattr(np, 'savez', killed)
        with pytest.raises(KeyboardInterrupt): looked()
    assert not list(cache_dir().glob('encoded/*.npz')) and len(looked().train)==40

# ---- a cache that cannot be written

@pytest.mark.parametrize('at', ['rows', 'encoded'])
def test_a_full_cache_is_said_in_one_line(empty, at):
    "A file system of 8 kB in the place of the folder, so that the disk itself says that it is full"
    written('rows.jsonl', GOOD*60)
    folder = cache_folder(at)
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=8k', 'tmpfs', folder], capture_output=True).returncode: pytest.skip('mounting is not permitted here')
    try:
        with pytest.raises(QLoRAError) as e: looked()
    finally: subprocess.run(['umount', '-l', folder])
    assert str(e.value)==f'the cache in {cache_dir()} cannot be written to: the disk is full. To go on, set QLORA_NB_CACHE to a folder with free space, or run %qlora_doctor --clear-cache'
    assert len(looked().train)==2400

def test_a_cache_that_is_a_file_is_said_in_one_line(empty):
    written('rows.jsonl')
    cache_dir().write_text('')
    with pytest.raises(QLoRAError, match='^the cache in .* cannot be written to: (Not a directory|File exists). To go on, set QLORA_NB_CACHE'): looked()

def test_no_space_for_a_second_copy_is_no_error(empty, monkeypatch, readings):
    def full(*args): raise OSError(28, 'No space left on device')
    written('rows.jsonl', bad=1)
    with monkeypatch.context() as m:
        m.setattr('qlora_nb.tokens.kept.write_whole', full)
        first = looked()
    assert first.train.findings['unreadable'].example.startswith('all are in ') and len(first.train)==40
    assert told(looked())[0]==told(first)[0] and readings['read']==2 and Path(first.train.findings['unreadable'].example.removeprefix('all are in ')).is_file()

# ---- private, bounded, cleared

def test_nobody_else_can_read_the_rows(empty, folder):
    before = os.umask(0o022)
    try:
        run = train(f'model: {folder}\ndata: {{train: rows, max_lost: 1}}\nquantization: {{bits: none}}\ntraining: {{max_steps: 1, max_length: 64}}\n', dict(rows=[*tiny.rows(), 7]))
        assert [mode(o) for o in (cache_dir(), cache_dir()/'rows', cache_dir()/'encoded', run.folder/'data')]==['0o700']*4
        assert sorted(o.name for o in (run.folder/'data').iterdir())==['rows.parquet', 'train.unreadable.jsonl']
        os.chmod(cache_dir()/'rows', 0o755)
        assert mode(cache_folder('rows'))=='0o700'
    finally: os.umask(before)

def test_what_was_abandoned_goes_after_a_day(empty):
    rows,day = cache_folder('rows'),24*3600
    child = subprocess.Popen([sys.executable, '-c', ''])
    child.wait()
    mine = scratch(rows)
    paths = dict(mine=mine, dead=mine.with_name(mine.name.replace(f'-{os.getpid()}-', f'-{child.pid}-')), fresh=mine.with_name('tmpfresh'), unnamed=mine.with_name('tmpabc'),
        elsewhere=mine.with_name('tmp-colab-1-1'), long_ago=mine.with_name('tmp-colab-2-2'))
    for name,path in paths.items():
        path.mkdir()
        (path/'rows.arrow').write_text('private')
        age = {'fresh': day/2, 'long_ago': 8*day}.get(name, 2*day)
        os.utime(path, (time.time()-age,)*2)
    cache_folder('rows')
    assert {name for name,path in paths.items() if path.exists()}=={'mine', 'fresh', 'elsewhere'}

def test_rows_read_long_ago_make_room(empty, monkeypatch):
    from qlora_nb.tokens import kept
    written('a.jsonl'), written('b.jsonl', GOOD[1:])
    looked('a.jsonl')
    old, = cache_dir().glob('rows/*')
    os.utime(old, (0, 0))
    monkeypatch.setattr(kept, 'MOST', 100)
    looked('b.jsonl')
    assert not old.exists() and len(list(cache_dir().glob('rows/*')))==1

def test_the_doctor_names_the_size_and_clears_it(ip, empty, monkeypatch, capsys):
    import qlora_nb.ui.doctor as room
    for name in ('check_versions', 'check_gpu', 'check_4bit', 'check_space'): monkeypatch.setattr(room, name, lambda *a: [])
    written('rows.jsonl')
    data,demo = looked(),cache_dir()/'smollm2'/'model'
    demo.parent.mkdir()
    demo.write_text('weights')
    size = sum(p.stat().st_size for name in ('rows', 'encoded') for p in (cache_dir()/name).rglob('*') if p.is_file())
    def found(): return next(check.found for check in ip.user_ns['health'].findings if check.what=='cache')
    ip.run_line_magic('qlora_doctor', '-o health')
    assert found().startswith(f'{size:,} bytes (') and found().endswith(f' of rows in {cache_dir()}') and size==cache_size()>1000
    ip.run_line_magic('qlora_doctor', '--clear-cache -o health')
    assert found().startswith(f'{size:,} bytes (') and 'of rows removed, 0 bytes of rows in' in found() and cache_size()==0
    assert demo.is_file() and len(data.train.messages)==len(list(data.train.messages))==40 and len(looked().train)==40
    room.doctor(clear_cache=True)
    assert cache_size()==0

# ---- side files

def test_the_rows_of_two_notebooks_do_not_meet(empty, monkeypatch):
    "Both in their own folder, with files of one name"
    found = []
    for name,bad in (('one', 2), ('two', 3)):
        (empty/name).mkdir()
        monkeypatch.chdir(empty/name)
        written('rows.jsonl', bad=bad)
        found.append(looked(output='~/runs').train.findings['unreadable'].example)
        looked('rows', space=dict(rows=[*GOOD, 7])) # And one of a variable
    sides = [Path(text.removeprefix('all are in ')) for text in found]
    assert [len(side.read_text().splitlines()) for side in sides]==[2, 3] and not list(empty.rglob('~'))
    assert all(side.is_relative_to(cache_dir()/'rows') for side in sides)

def test_a_run_keeps_the_list_of_its_unreadable_rows(empty, folder, monkeypatch):
    monkeypatch.setenv('HOME', str(empty/'home'))
    written('rows.jsonl', bad=2)
    cell = f'model: {folder}\ndata: {{train: rows.jsonl}}\nquantization: {{bits: none}}\ntraining: {{max_steps: 2, save_steps: 1, max_length: 64}}\noutput: {{output_dir: ~/runs}}\n'
    run = train(cell, {}, name='run', on_change=tiny.at_step(1, lambda run: run.stop('test')))
    side = empty/'home'/'runs'/'run'/'data'/'train.unreadable.jsonl'
    assert [json.loads(line)['line'] for line in side.read_text().splitlines()]==[41, 42] and str(side) in ' '.join(run.notes)
    clear_cache()
    again = resume('run', cell, {})
    assert again.status=='finished' and str(side) in ' '.join(again.notes) and not (empty/'~').exists()

def test_the_side_file_holds_no_token(empty):
    token = 'ghp_'+'a1B2'*9
    Path('rows.jsonl').write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "'+token+'\n')
    rows = inspect('rows.jsonl', {}, side='bad.jsonl')
    assert token not in Path('bad.jsonl').read_text() and json.loads(Path('bad.jsonl').read_text())['row']=='{"prompt": "***' and rows.unreadable==1

# ---- too much

@pytest.mark.parametrize('name', ['rows.jsonl', 'rows.json', 'rows.txt', 'rows.csv', 'rows.jsonl.gz'])
def test_a_line_without_end_is_refused_by_name(empty, monkeypatch, name):
    monkeypatch.setattr(decoding, 'LINE', 2**20, raising=False)
    raw = b'{"text": "'+b'a'*3*2**20
    Path(name).write_bytes(gzip.compress(raw) if name.endswith('.gz') else raw)
    with pytest.raises(QLoRAError) as e: inspect(name, {})
    assert str(e.value)==f'{name}, line 1: longer than 1 MB. Write one row per line, as in JSON lines'

def test_no_more_of_a_bomb_is_unpacked_than_its_limit(empty):
    "64 KB that unpack to 64 MB, with a limit of 1 MB: in a process of its own, whose memory is measured"
    with gzip.open('rows.jsonl.gz', 'wb') as file:
        for _ in range(64): file.write(bytes(2**20))
    code = 'import tracemalloc\nfrom qlora_nb.data import decoding\nfrom pathlib import Path\ndecoding.LINE = 2**20\ntracemalloc.start()\n' \
        'try: list(decoding.raw_lines(Path("rows.jsonl.gz")))\nexcept Exception as e: print(e)\nprint(tracemalloc.get_traced_memory()[1])'
    said,peak = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip().splitlines()
    assert 'longer than 1 MB' in said and int(peak)<8*2**20 and decoding.LINE==256*2**20

def test_a_document_has_a_limit_too(empty, monkeypatch):
    monkeypatch.setattr(decoding, 'WHOLE', 1000)
    Path('rows.json').write_text(json.dumps(GOOD, indent=1))
    with pytest.raises(QLoRAError, match='^rows.json: larger than 9.31323e-07 GB when unpacked'): inspect('rows.json', {})

@pytest.mark.parametrize('text', ['['*100_000, '['*100_000+']'*100_000, '[\n'*100_000, '{"rows":\n'+'['*100_000, '{"a":'*100_000])
def test_brackets_without_end_are_one_line(empty, text):
    Path('rows.json').write_text(text)
    with pytest.raises(QLoRAError, match='nested too deeply') as e: looked('rows.json')
    assert len(str(e.value).splitlines())==1 and len(str(e.value))<400

@pytest.mark.parametrize('name', ['rows.jsonl', 'rows.csv'])
def test_thousands_of_unknown_columns_are_one_short_line(empty, name):
    row = {f'column_number_{i}': 'x' for i in range(5000)}
    Path(name).write_text(json.dumps(row)+'\n' if name.endswith('l') else ','.join(row)+'\n'+','.join(row.values())+'\n')
    with pytest.raises(QLoRAError) as e: looked(name)
    assert len(str(e.value))<1000 and re.search(r'and 4,9\d\d more', str(e.value))

def test_of_a_very_long_row_only_the_beginning_is_tokenised(empty, monkeypatch):
    "2,000,000 characters and 64 tokens, in a tokenizer of single characters"
    tok,given = tiny.tokenizer(),[]
    plain = type(tok).__call__
    def counted(self, text, *args, **kw):
        given.append(sum(map(len, [text] if isinstance(text, str) else text)))
        return plain(self, text, *args, **kw)
    monkeypatch.setattr(type(tok), '__call__', counted)
    data = looked('rows', tok, dict(rows=[dict(prompt='what', completion='ab '*700_000), *GOOD]), length=64)
    assert sum(given)<150_000 and data.train.findings['estimated'].rows==1 and list(data.train.kept)[0]==64

def test_thousands_of_lists_that_differ_are_one_short_line(empty):
    columns = {f'column_number_{i}': ['x']*(i%3+1) for i in range(5000)}
    Path('rows.json').write_text(json.dumps(columns))
    for look in (lambda: inspect('rows.json', {}), lambda: inspect(columns, {})):
        with pytest.raises(QLoRAError, match='the columns differ in length: column_number_0 1, column_number_1 2') as e: look()
        assert len(str(e.value))<1000 and re.search(r'and 4,9\d\d more', str(e.value))

def test_a_good_row_behind_a_hundred_bad_ones_is_recognised(empty):
    Path('rows.jsonl').write_text((BAD+'\n')*120+json.dumps(GOOD[0])+'\n')
    assert (inspect('rows.jsonl', {}).form, inspect('rows.jsonl', {}).unreadable)==('prompt_completion', 120)
