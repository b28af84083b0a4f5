"The command line: what it prints, what it refuses, how it ends"
import json, subprocess, sys

import pytest

from qlora_nb.ui.cli import main
from qlora_nb.facts.hardware import gpus

CELL = 'model: meta-llama/Llama-2-7b-hf\ndata: {train: tickets.jsonl}\ntraining: {per_device_train_batch_size: 2}\n'


@pytest.fixture
def config(tmp_path):
    f = tmp_path/'config.yaml'
    f.write_text(CELL)
    return str(f)


def run(capsys, *words):
    status = main([str(w) for w in words])
    return status, *capsys.readouterr()


def test_json(config, capsys):
    status,out,err = run(capsys, 'plan', config, '--gpu', 'T4', '--json')
    d = json.loads(out)
    assert status==0 and not err and d['gpu']=='T4' and d['engine']=='formula' and d['verdict']=='fits' and d['job']['batch']==2
    assert d['tensors_bytes']==sum(d['components'].values()) and d['reserved_bytes'][0]<=d['reserved_bytes'][1]<d['device_bytes'][1] and d['phases']


def test_a_config_without_data_plans_the_same(config, tmp_path, capsys):
    without = tmp_path/'plan.yaml'
    without.write_text(CELL.replace('data: {train: tickets.jsonl}\n', ''))
    assert run(capsys, 'plan', without, '--gpu', 'T4', '--json')==run(capsys, 'plan', config, '--gpu', 'T4', '--json')


def test_text_and_markdown(config, capsys):
    _,text,_ = run(capsys, 'plan', config, '--gpu', 'T4')
    _,md,_ = run(capsys, 'plan', config, '--gpu', 'T4', '--markdown')
    assert text.startswith('✓ Fits. Llama-2-7B with QLoRA trains on a T4') and md.startswith('### ✓ Fits. Llama-2-7B') and '| GPU | cost | time |' in md


def test_a_model_needs_no_file(capsys):
    status,out,_ = run(capsys, 'plan', 'demo', '--gpu', 'RTX 4090', '--json', '--tokens', '2_000_000')
    d = json.loads(out)
    assert status==0 and d['model']=='SmolLM2-135M' and d['work']['tokens']==6_000_000 and d['hours'][0]<d['hours'][1]


def test_row_lengths_from_a_file(config, tmp_path, capsys):
    (tmp_path/'lengths.txt').write_text('100\n200\n300\n')
    _,out,_ = run(capsys, 'plan', config, '--gpu', 'L4', '--tokens', tmp_path/'lengths.txt', '--json')
    assert json.loads(out)['job']['length']==300


def test_several_cards(config, capsys):
    _,out,_ = run(capsys, 'plan', config, '--gpu', 'L4', '--gpus', 2, '--sharding', 'fsdp', '--json')
    d = json.loads(out)
    assert (d['gpus'], d['sharding'])==(2, 'fsdp') and 'gathered' in d['components']


def test_gpus(capsys):
    _,text,_ = run(capsys, 'gpus')
    _,data,_ = run(capsys, 'gpus', '--json')
    assert len(text.splitlines())==len(gpus())+2 and [d['name'] for d in json.loads(data)]==[d.name for d in gpus()]
    assert all(p['page'] for d in json.loads(data) for p in d['prices'])


@pytest.mark.parametrize('words,say', [(['plan', 'CONFIG', '--gpu', 'T5'], "Did you mean 'T4'"), (['plan', 'Llama-2-7b-fh'], "Did you mean 'Llama-2-7B'"),
    (['plan', 'no/config.yaml'], 'no such file'), (['plan'], 'required: config'), ([], 'required'), (['plna', 'demo'], 'invalid choice'),
    (['plan', 'demo', '--engine', 'trace2'], 'invalid choice'), (['plan', 'demo', '--tokens', 'many'], 'neither a number of tokens'),
    (['plan', 'demo', '--json', '--markdown'], 'not allowed with'), (['plan', 'demo', '--gpu', 'T4', '--gpus', '0'], 'must be an integer'), (['gpus', '--jsn'], 'unrecognized')])
def test_refused_in_one_line(config, capsys, words, say):
    status,out,err = run(capsys, *(config if w=='CONFIG' else w for w in words))
    assert status==2 and not out and err.count('\n')==1 and say in err


def test_several_problems_are_one_line(tmp_path, capsys):
    f = tmp_path/'bad.yaml'
    f.write_text('modle: demo\ndata: {train: demo}\nlora: {r: 0}\n')
    status,_,err = run(capsys, 'plan', f)
    assert status==2 and err.count('\n')==1 and "line 1" in err and 'line 3, lora.r' in err and "Did you mean 'model'" in err


def test_a_neighbouring_file_is_suggested(config, capsys):
    assert "config.yaml'?" in run(capsys, 'plan', config.replace('config', 'confg'))[2]


def test_as_a_module(config):
    def python(*words): return subprocess.run([sys.executable, '-m', 'qlora_nb', *words], capture_output=True, text=True)
    p = python('plan', config, '--gpu', 'T4', '--json')
    assert p.returncode==0 and json.loads(p.stdout)['verdict']=='fits' and not p.stderr
    bad = python('plan', config, '--gpu', 'T5', '--jso')
    assert bad.returncode==2 and bad.stderr.count('\n')==1 and 'Traceback' not in bad.stderr and python('--help').returncode==0
