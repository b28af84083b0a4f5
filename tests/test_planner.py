"The comparison: its numbers, its wording, and both of its forms"
import json, re, subprocess, sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from qlora_nb.planning import planner, page as planpage
from qlora_nb.config.cell import parse
from qlora_nb.errors import QLoRAError
from qlora_nb.facts.hardware import Device, gpu, gpus
from qlora_nb.planning.fit import peak
from qlora_nb.planning.memory import budget
from qlora_nb.facts.models import find
from qlora_nb.planning.planner import Plan, job_for, plan
from qlora_nb.render import GB, GiB
from qlora_nb.screens.bars import scale

CELL = 'model: meta-llama/Llama-2-7b-hf\ndata: {train: tickets.jsonl}\n'
T4 = CELL+'hardware: {gpu: T4}\n'


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch): monkeypatch.setattr(planner, 'glance', lambda: None)


def test_the_three_columns_of_llama_2():
    p = plan(T4)
    full,lora,q = (o.budget for o in p.options)
    assert p.budget is q and p.architecture==find('Llama-2-7B') and p.device==gpu('T4') and [o.fit.verdict for o in p.options[::2]]==['no', 'fits']
    assert round(full.total/GB, 1)==107.8 and round(lora.total/GB, 2)==14.12 and q.total==4_505_467_776
    assert (p.precision.compute, p.precision.adapters)==('float16', 'float32')


def test_a_config_and_its_text_plan_alike(): assert plan(parse(T4))==plan(T4)


@pytest.mark.parametrize('lines,kw', [('lora: {r: 64}', dict(r=64)), ('lora: {target_modules: [q_proj, v_proj], r: 8}', dict(target_modules=('q_proj', 'v_proj'), r=8)),
    ('lora: {target_modules: attention-only}', dict(target_modules='attention-only')), ('lora: {use_dora: true}', dict(use_dora=True)),
    ('lora: {lora_dropout: 0}', dict(lora_dropout=0.)), ('quantization: {bits: 8}', dict(stored='int8')),
    ('quantization: {bnb_4bit_use_double_quant: false}', dict(double_quant=False)), ('quantization: {bnb_4bit_quant_type: fp4}', dict(stored='fp4')),
    ('quantization: {bits: none}', dict(stored='bfloat16')), ('training: {optim: adamw_8bit}', dict(optim='adamw_8bit')),
    ('training: {per_device_train_batch_size: 4}', dict(batch=4)), ('training: {max_length: 2048}', dict(length=2048)),
    ('training: {gradient_accumulation_steps: 1}', dict(accumulation=1)), ('training: {gradient_checkpointing: false}', dict(checkpointing=False))])
def test_every_key_that_costs_memory_counts(lines, kw):
    p,base = plan(CELL+lines+'\nhardware: {gpu: L4}\n'),plan(CELL+'hardware: {gpu: L4}\n')
    assert p.job==base.job.changed(**kw) and p.job!=base.job and (p.tensors_bytes!=base.tensors_bytes or 'fp4' in lines)


def test_the_job_is_what_the_trainer_would_run():
    from qlora_nb.config.resolve import resolve
    for device in (gpu('T4'), gpu('L4'), Device('cpu', 'x', 16*GiB), Device('cpu', 'y', 16*GiB, bf16=True), gpu('Apple M1 16GB')):
        c = parse('model: demo\ndata: {train: demo}\n')
        j,r = job_for(c, find('demo'), device),resolve(c, {}, find('demo'), device)
        assert (j.checkpointing, j.optim)==(r.training.gradient_checkpointing, r.training.optim) and j.accumulation==16
        assert j.device==('cpu' if device.kind in ('cpu', 'mps') else 'cuda') and j.stack.adapter_dtype=='float32'
        assert j.stack.loss==('learned' if device.kind=='cpu' else 'fused') # `compute_loss` of the trainer asks for `cpu` alone
        assert j.stack.autocast==(None if j.dtype=='float32' else j.dtype) and j.attention=='sdpa'
    assert job_for(parse('model: demo\ndata: {train: demo}\ntraining: {max_length: 512}\n'), find('demo'), Device('cpu', 'x', GiB)).attention=='eager'
    short = job_for(parse('model: demo\ndata: {train: demo}\n'), find('demo'), Device('cpu', 'x', GiB), longest=100)
    assert (short.length, short.attention)==(100, 'sdpa') # the loader goes by max_length, not by the rows

def test_the_training_stack_is_that_of_the_installed_packages():
    from importlib.metadata import version
    p = plan(T4)
    assert any(n.startswith('Training stack: ') and version('trl') in n and version('transformers') in n for n in p.notes) and p.job.stack.why


def test_without_trl_autocast_follows_the_dtype_too(monkeypatch):
    from qlora_nb.facts import libraries
    from qlora_nb.simulation.job import detect
    def absent(package): return ''
    monkeypatch.setattr(libraries, 'installed', absent)
    assert [detect('cuda', dtype).autocast for dtype in ('float16', 'bfloat16', 'float32')]==['float16', 'bfloat16', None]

def test_full_fine_tuning_is_priced_in_float32():
    f = plan(T4).options[0].job
    assert (f.method.name, f.dtype, f.optim, f.stack.autocast)==('full', 'float32', 'adamw_torch', None)


def test_a_length_beyond_the_model_is_cut_and_said():
    p = plan(CELL+'training: {max_length: 9000}\nhardware: {gpu: L4}\n')
    assert p.job.length==4096 and any('4,096 is used' in n for n in p.notes)


def test_rows_decide_length_time_and_money():
    p = plan(CELL+'hardware: {gpu: L4}\n', tokens=[100, 700]*50)
    assert p.job.length==700 and p.work.tokens==400*100*3 and p.cost.hours[0]<p.cost.hours[1] and '100 rows' in str(p)
    assert plan(T4).cost.said and 'for a million tokens' in str(plan(T4))


def test_without_quantisation_lora_is_chosen():
    p = plan(CELL+'quantization: {bits: none}\n')
    assert p.option is p.options[1] and p.budget.title.endswith('LoRA on bfloat16, r=16') and p.options[2].budget==plan(CELL).options[2].budget


def test_where_the_device_comes_from(monkeypatch):
    assert plan(CELL).device.memory is None and any('No GPU is named' in n for n in plan(CELL).notes)
    seen = Device('cuda', 'Some card', 10*GiB, (7, 0))
    monkeypatch.setattr(planner, 'glance', lambda: seen)
    assert plan(CELL).device==seen and plan(CELL).precision.compute=='float16' and 'Some card' in str(plan(CELL))
    assert plan(T4).device.name=='T4' and plan(T4, device=gpu('L4')).device.name=='L4' and plan(T4, gpu='A100 80GB').device.name=='A100 80GB'


def test_a_cpu_pages_nothing_and_says_so():
    p = plan(CELL, device=Device('cpu', 'old CPU', 24*GiB))
    assert p.precision.compute=='float32' and p.fit.paged==0 and any('needs an NVIDIA GPU' in n for n in p.notes)
    assert p.options[1].budget.group('weights')==4*p.architecture.num_parameters and 'old CPU' in str(p) and p.reserved_bytes==(p.tensors_bytes, p.tensors_bytes)


def test_the_same_number_everywhere():
    p = plan(T4)
    assert p.tensors_bytes==peak(p.job).tensors==sum(p.components.values())==max(p.phases.values())==p.phases[p.binding]
    assert p.gpu_verdicts[[c.device.name for c in p.gpu_verdicts].index('T4')].fit==p.fit==p.option.fit
    assert p.tensors_bytes<=p.reserved_bytes[0]<=p.reserved_bytes[1]<p.device_bytes[1]<=p.device.memory and p.verdict=='fits'


def test_cards_are_judged_alike_and_bigger_ones_hold_more():
    p = plan(CELL.replace('7b', '13b')+'training: {per_device_train_batch_size: 4}\nhardware: {gpu: RTX 3060}\n')
    assert {c.verdict for c in p.gpu_verdicts}=={'fits', 'tight', 'no'} and all((c.batch>=4)==(c.verdict=='fits') for c in p.gpu_verdicts)
    nv = [c for c in p.gpu_verdicts if c.device.kind=='cuda' and (8, 0)<=c.device.capability<(9, 0)]
    assert [c.batch for c in nv]==sorted(c.batch for c in nv) and [c.device.memory for c in p.gpu_verdicts]==sorted(c.device.memory for c in p.gpu_verdicts)


def test_the_largest_settings_are_exact():
    p = plan(T4)
    for key,n in p.largest.items():
        top = dict(batch=4096, length=4096, r=4096)[key]
        assert planner.fit(p.job.changed(**{key: n}), p.machine).verdict=='fits'
        assert n==top or planner.fit(p.job.changed(**{key: n+1}), p.machine).verdict!='fits'


def test_several_cards():
    text = CELL.replace('7b', '70b')+'hardware: {gpu: RTX 3090}\n'
    one,two = plan(text),plan(text, gpus=2, sharding='fsdp')
    assert one.verdict=='no' and two.tensors_bytes<.7*one.tensors_bytes and '2 × RTX 3090 (FSDP)' in str(two) and 'Communication' in str(two)
    assert all(c.device.kind in ('cuda', 'rocm') for c in two.gpu_verdicts) and plan(text, gpus=2).machine.sharding=='ddp'


def traced(monkeypatch, factor):
    real = planner.peak
    def fake(job, engine='formula'):
        p = real(job)
        return p if engine=='formula' else replace(p, tensors=round(p.tensors*factor), reserved=(p.tensors, 2*p.tensors))
    monkeypatch.setattr(planner, 'peak', fake)


@pytest.mark.parametrize('factor,say', [(1.01, 'agree'), (1.1, 'disagree'), (.9, 'disagree')])
def test_formula_and_trace_check_each_other(monkeypatch, factor, say):
    traced(monkeypatch, factor)
    p = plan(T4, engine='trace')
    assert f'Formula and trace {say}' in p.notes[0] and p.tensors_bytes==round(p.options[2].estimate.tensors*factor)
    assert p.reserved_bytes==(p.options[2].estimate.tensors, 2*p.options[2].estimate.tensors) and p.engine=='trace' and 'simulated by the trace' in str(p)


def test_json_has_what_programs_need():
    d = json.loads(plan(T4).to_json())
    assert {'tensors_bytes', 'reserved_bytes', 'device_bytes', 'verdict', 'phases', 'components', 'gpu_verdicts', 'suggestion', 'setting_changes', 'largest', 'loading', 'job'}<=set(d)
    assert d['verdict']=='fits' and d['tensors_bytes']==sum(d['components'].values()) and set(d['phases'])=={'load', 'forward', 'backward', 'optimizer'}
    low,high = d['device_bytes']
    assert d['margin_bytes']==d['usable_bytes']-high>0 and d['reserved_bytes'][0]<low and d['job']['stack']['name']=='qlora_nb' and len(d['gpu_verdicts'])==len([g for g in gpus() if g.memory])


def test_no_card_no_verdict():
    p = plan(CELL)
    assert p.verdict=='unknown' and p.margin is None and p.largest['batch'] is None and p.suggestion is None and 'Name yours under `hardware.gpu`' in str(p) and str(p).startswith('≈ No GPU named. ') and len(p.gpu_verdicts)>20


def test_cards_without_a_figure_are_left_out():
    p = plan(CELL, device=Device('cuda', 'brand new', None, (12, 0), True))
    assert 'brand new' in str(p) and 'brand new' not in [c.device.name for c in p.gpu_verdicts] and p.verdict=='unknown'


@pytest.mark.parametrize('text,say', [(CELL.replace('Llama-2-7b-hf', 'Llama-2-7b-fh'), "line 1, model: .*Did you mean 'meta-llama/Llama-2-7b-hf'"),
    (CELL+'hardware: {gpu: T5}\n', "line 3, hardware.gpu: .*Did you mean 'T4'"),
    (CELL+'lora:\n  target_modules: [q_proj, up_porj]\n', "line 4, lora.target_modules: .*Did you mean 'up_proj'"), ('Llama 2 7B', "Did you mean 'Llama-2-7B'")])
def test_refused_in_one_line(text, say):
    with pytest.raises(QLoRAError, match=say) as e: plan(text)
    assert '\n' not in str(e.value)


def test_by_name_and_by_architecture():
    a = find('TinyLlama-1.1B')
    assert plan('tinyllama-1.1b').to_dict()==plan(a).to_dict() and plan(a).budget==budget(a)
    own = replace(a, name='mine', num_hidden_layers=2, hub_id='')
    assert plan(own).architecture==own


class Text(HTMLParser):
    "Collects cells and checks that elements are closed in order"
    def __init__(self):
        super().__init__()
        self.open,self.cells,self.labels = [],[],[]
    def handle_starttag(self, tag, attrs):
        if tag=='br': return
        self.open.append(tag)
        if tag in ('td', 'th'): self.cells.append('')
        if dict(attrs).get('role')=='img': self.labels.append(dict(attrs)['aria-label'])
    def handle_startendtag(self, tag, attrs): pass
    def handle_endtag(self, tag): assert self.open.pop()==tag
    def handle_data(self, data):
        if 'title' not in self.open and any(t in ('td', 'th') for t in self.open): self.cells[-1] += data


def test_all_forms_show_the_same_rows():
    p = plan(T4)
    t = Text()
    t.feed(p._repr_html_())
    assert not t.open and len(t.labels)==3 and all('GiB' in l and 'it needs' in l for l in t.labels)
    shown,text,marked = ' '.join(t.cells),str(p),p.to_markdown()
    tables = planpage.numbers,planpage.methods,planpage.setting_rows,planpage.phases,planpage.load_rows,planpage.solved,planpage.quoted,planpage.parts
    for row in (row for rows in tables for row in rows(p)):
        for cell in (f'{c:,}' if isinstance(c, int) else str(c) for c in row):
            assert cell.strip('`') in shown and cell in text and cell.replace('|', '\\|') in marked
    for row in (*planpage.gpu_table(p).rows, *(row for table in planpage.others(p).tables for row in table.rows)):
        name,cost,time = (getattr(c, 'text', c) for c in row[:3])
        assert all(word in shown and word in text and word.replace('$', '\\$') in marked for word in (name, cost, time))


def test_the_line_of_the_card_is_drawn_where_it_lies():
    p = plan(T4)
    marks = re.findall(r'class="cap"[^>]*left:([\d.]+)%', p._html())
    bars = planpage.memory_bars(p)
    assert len(marks)==len(bars)==3 and all(abs(float(m)-100*p.device.memory/scale(bars, p.device.memory))<.01 for m in marks)
    assert 'class="cap"' not in plan(CELL)._html()


def test_names_are_escaped():
    evil = replace(find('demo'), name='<script>x</script>')
    assert '<script>' not in plan(evil)._repr_html_() and isinstance(plan(evil), Plan)


def test_no_torch_for_a_plan():
    code = f"import sys; from qlora_nb import plan; p = plan({T4!r}); p._repr_html_(); print([m for m in ('torch', 'transformers', 'numpy', 'huggingface_hub') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip()=='[]'
