"No token or password in any file of a run, and no run that cannot be resumed for the sake of it"
import json, os
import pytest, tiny
from qlora_nb.config.cell import parse
from qlora_nb.errors import QLoRAError
from qlora_nb.store.folder import read_about, write_about
from qlora_nb.store.secrets import holds_token, redact, redact_texts
from qlora_nb.training.start import resume, train

# Put together here, so that this file itself holds none
TOKENS = {name: begin+body for name,begin,body in [('hub', 'hf_', 'aB3dE6gH9j'*3), ('github', 'ghp_', 'a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8'), ('fine-grained', 'github_pat_', '11ABCDEFG0aBcDeFgHiJkL_'+'x9'*25),
    ('openai', 'sk-', 'aB3dE6gH9j'*4), ('project', 'sk-proj-', 'aB3-E6_H9j'*4), ('anthropic', 'sk-ant-', 'api03-aB3-E6_H9j'*3), ('amazon', 'AKIA', 'IOSFODNN7EXAMPLE'), ('wandb', '', '0123456789abcdef0123456789abcdef01234567'),
    ('slack', 'xoxb-', '123456789012-aBcDeFgHiJ'), ('address', 'https://ada:', 'l0velace@example.org/rows.jsonl'), ('query', 'https://example.org/rows.jsonl?access_token=', 'abc123def456')]}
SAID = {name: token.removeprefix('https://ada:').removeprefix('https://example.org/rows.jsonl?access_token=').removesuffix('@example.org/rows.jsonl') for name,token in TOKENS.items()}
COMMIT = 'c1899de289a04d12100db370d81485cdf75e47ca'
each = pytest.mark.parametrize('name', TOKENS)

@each
def test_a_token_is_struck_out_of_a_text(name):
    text = redact(f'401 for {TOKENS[name]}, said "{TOKENS[name]}"')
    assert SAID[name] not in text and text.startswith('401 for ') and '***' in text

def test_what_only_looks_like_a_token_stays():
    texts = ['hf_transfer and hf_hub_download', 'sk-learn', 'task-classification', f'revision {COMMIT}', f"revision='{COMMIT}'", f'model@{COMMIT}', f'models--x/snapshots/{COMMIT}/config.json', 'https://example.org/a@b', 'git+ssh://git@example.org/x',
        'a'*64, 'sequence token: </s>', 'xoxo', 'hf://user/name']
    assert [redact(text) for text in texts]==texts and not any(map(holds_token, texts))

@each
@pytest.mark.parametrize('line', ['data: {train: rows, system: "say TOKEN"}', 'data: {train: "TOKEN"}', 'data: {train: rows}\ntracking: {sample_prompts: ["a", "TOKEN"]}', 'data: {train: rows}\ntracking: {report_to: "TOKEN"}',
    'data: {train: rows}\noutput: {output_dir: "TOKEN"}', 'data: {train: rows}\n"TOKEN": 1', 'data: {train: rows}\nrevision:TOKEN', 'data: {train: rows, system: hello # TOKEN\n}\ntraining: {max_steps: x}'])
def test_a_cell_with_a_token_is_refused_without_repeating_it(name, line):
    with pytest.raises(QLoRAError) as e: parse(f'model: demo\n{line.replace("TOKEN", TOKENS[name])}')
    assert SAID[name] not in str(e.value) and SAID[name] not in repr([vars(p) for p in e.value.errors])

def test_a_revision_is_a_commit_and_no_token():
    config = parse(f'model: demo\nrevision: {COMMIT}\ndata: {{train: rows, revision: {COMMIT}}}')
    assert config.revision==config.data.revision==COMMIT
    with pytest.raises(QLoRAError, match='access tokens'): parse(f'model: demo\nrevision: hf_{COMMIT}\ndata: {{train: rows}}')

def test_a_comment_is_noted_without_its_token():
    noted = parse(f'model: demo\ndata:\n  train: rows\n  system: hello # {TOKENS["hub"]}').notes
    assert len(noted)==1 and '***' in noted[0] and SAID['hub'] not in noted[0]

# ---- the environment

@pytest.mark.parametrize('name, value, secret', [('JUPYTER_TOKEN', 'training', False), ('JUPYTER_TOKEN', 'learning_rate', False), ('HF_TOKEN_PATH', '/data/x', False), ('MY_SECRET', '/data/models', False), ('TOKEN_URL', 'https://example.org/login', False),
    ('TOKENIZERS_PARALLELISM', 'false-or-true1', False), ('JUPYTER_TOKEN', '3f9a0c1b2d4e5f60718293a4b5c6d7e8', True), ('MY_PASSWORD', 'hunter22', True), ('DB_PASSWORD', 'correcthorsebatterystaple', True), ('AWS_SECRET_ACCESS_KEY', 'wJalrXUtnFEMI/K7MDENG/bPxRfiCY1234567890', True),
    ('MY_PASSWORD', 'pässwört-"x"', True), ('API_KEY', "it's <so> & 'so'", True), ('MY_SECRET', 'two\nlines-1', True), ('MY_PASSWORD', 'short', False)])
def test_a_secret_of_the_environment_in_every_spelling(monkeypatch, name, value, secret):
    from html import escape
    from urllib.parse import quote
    monkeypatch.setenv(name, value)
    quoted = [repr(value), *(json.dumps(value, ensure_ascii=ascii) for ascii in (True, False))]
    for way in [value, *(o[1:-1] for o in quoted), escape(value), quote(value, safe=''), ' '.join(value.split())]: assert redact(f'<{way}>')==('<***>' if secret else f'<{way}>')

def test_keys_and_numbers_stay(monkeypatch):
    monkeypatch.setenv('MY_SECRET', 'pl4nted-key')
    monkeypatch.setenv('API_KEY', '12345678')
    assert redact_texts({'pl4nted-key': 12345678, 'a': [True, None, .5, 'no pl4nted-key', COMMIT]})=={'pl4nted-key': 12345678, 'a': [True, None, .5, 'no ***', COMMIT]}

def test_a_password_is_struck_out_of_facts_before_json_escapes_it(tmp_path, monkeypatch):
    monkeypatch.setenv('MY_PASSWORD', 'pässwört-"x"')
    write_about(tmp_path, error='no entry with pässwört-"x"', resolved={'model': 'pässwört-"x"'})
    about = read_about(tmp_path)
    assert about['error']=='no entry with ***' and about['resolved']=={'model': 'pässwört-"x"'}

# ---- a run

def cell(folder, out, **training):
    keys = dict(dict(max_steps=4, save_steps=2, save_minutes=0, max_length=64, learning_rate=1e-3), **training)
    told = ', '.join(f'{key}: {value}' for key,value in keys.items())
    return f'model: {folder}\ndata: {{train: rows}}\nquantization: {{bits: none}}\ntraining: {{{told}}}\noutput: {{output_dir: {out}}}\n'

def test_a_run_is_resumed_whatever_the_environment_calls_a_token(folder, tmp_path, monkeypatch):
    "Words of the config, of its keys and of the facts, and the folder of the model"
    monkeypatch.setenv('JUPYTER_TOKEN', 'training')
    monkeypatch.setenv('MY_SECRET', 'learning_rate')
    monkeypatch.setenv('HF_TOKEN_PATH', os.path.dirname(folder))
    monkeypatch.setenv('OTHER_SECRET', str(tmp_path/'runs'))
    space,text = dict(rows=tiny.rows()),cell(folder, tmp_path/'runs')
    train(text, space, name='run', on_change=tiny.at_step(2, lambda run: run.stop('test')))
    about = read_about(tmp_path/'runs'/'run')
    assert about['resolved']['model']==folder and about['resolved']['training.learning_rate']==1e-3 and parse(about['cell']).model==folder
    run = resume(str(tmp_path/'runs'/'run'), text, space)
    assert run.status=='finished' and run.step==4

def test_every_text_of_a_run_is_struck_out(folder, tmp_path, monkeypatch):
    "Error, notes, answers and plan, as they stand in events, reports and facts"
    monkeypatch.setenv('MY_PASSWORD', 'pässwört-"x"')
    monkeypatch.setenv('API_KEY', 'a<b>&c-0123')
    planted = f'pässwört-"x", a<b>&c-0123 and {" and ".join(TOKENS.values())}'
    def fail(run):
        run.note(f'noted {planted}')
        run.event('told', what=[planted], error=ValueError(planted))
        run.trainer.compute_loss = lambda *a, **kw: (_ for _ in ()).throw(ValueError(planted))
    with pytest.raises(QLoRAError): train(cell(folder, tmp_path), dict(rows=tiny.rows()), name='run', on_change=tiny.at_step(1, fail))
    texts = {p.name: p.read_text() for p in (tmp_path/'run').iterdir() if p.suffix in ('.json', '.jsonl', '.md', '.html', '.yaml')}
    assert set(texts)>={'run.json', 'events.jsonl', 'report.md', 'report.html', 'config.yaml', 'plan.md'}
    left = {(name, said) for name,text in texts.items() for said in [*SAID.values(), 'sswört', 'ssw\\u00f6rt', 'c-0123'] if said in text}
    assert not left and all('***' in texts[name] for name in ('events.jsonl', 'report.md', 'report.html'))
