"The comparison: its numbers, its wording, and both of its forms"
import re, subprocess, sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from qlora_nb import planner
from qlora_nb.config import parse
from qlora_nb.errors import QLoRAError
from qlora_nb.hardware import Device, gpu, gpus
from qlora_nb.memory import ON_TOP, budget
from qlora_nb.models import find
from qlora_nb.planner import Plan, plan, room
from qlora_nb.render import GB, GiB

CELL = 'model: meta-llama/Llama-2-7b-hf\ndata: {train: tickets.jsonl}\n'
T4 = CELL+'hardware: {gpu: T4}\n'


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch): monkeypatch.setattr(planner, 'glance', lambda: None)


def test_the_three_columns_of_llama_2():
    p = plan(T4)
    full,lora,q = p.budgets
    assert p.budget is q and p.architecture==find('Llama-2-7B') and p.device==gpu('T4')
    assert round(full.total/GB, 1)==107.8 and round(lora.total/GB, 2)==14.12 and q.total==4_505_467_776
    assert (p.precision.compute, p.precision.adapters)==('float16', 'float32')


def test_a_config_and_its_text_plan_alike(): assert plan(parse(T4))==plan(T4)


@pytest.mark.parametrize('lines,kw', [('lora: {r: 64}', dict(r=64)), ('lora: {target_modules: [q_proj, v_proj], r: 8}', dict(target_modules=['q_proj', 'v_proj'], r=8)),
    ('lora: {target_modules: attention-only}', dict(target_modules='attention-only')), ('lora: {use_dora: true}', dict(use_dora=True)),
    ('quantization: {bits: 8}', dict(bits=8)), ('quantization: {bnb_4bit_use_double_quant: false}', dict(double_quant=False)),
    ('quantization: {bnb_4bit_quant_type: fp4}', dict(quant_type='fp4')), ('training: {optim: adamw_8bit}', dict(optim='adamw_8bit')),
    ('quantization: {bnb_4bit_compute_dtype: float32}', dict(dtype='float32'))])
def test_every_key_that_costs_memory_counts(lines, kw):
    assert plan(CELL+lines+'\nhardware: {gpu: L4}\n').budget==budget(find('Llama-2-7B'), **kw)


def test_without_quantisation_lora_is_chosen():
    p = plan(CELL+'quantization: {bits: none}\n')
    assert p.chosen==1 and p.budget.title.endswith('LoRA on bfloat16, r=16') and p.budgets[2]==plan(CELL).budgets[2]


def test_where_the_device_comes_from(monkeypatch):
    assert plan(CELL).device.memory is None and any('No GPU is named' in n for n in plan(CELL).notes)
    seen = Device('cuda', 'Some card', 10*GiB, (7, 0))
    monkeypatch.setattr(planner, 'glance', lambda: seen)
    assert plan(CELL).device==seen and plan(CELL).precision.compute=='float16' and 'Some card' in str(plan(CELL))
    assert plan(T4).device.name=='T4' and plan(T4, device=gpu('L4')).device.name=='L4'


def test_a_cpu_pages_nothing_and_says_so():
    p = plan(CELL, device=Device('cpu', 'old processor', 24*GiB))
    assert p.precision.compute=='float32' and p.budget.pageable==0 and any('pages nothing on a CPU' in n for n in p.notes)
    assert p.budgets[1].group('weights')==4*p.architecture.num_parameters and 'old processor' in str(p)


def test_notes_begin_with_what_is_missing():
    for p in (plan(T4), plan('demo'), plan(CELL, device=Device('cpu', 'x', GiB))): assert p.notes[0]==ON_TOP


def test_exceeded_is_a_necessary_condition():
    q = budget(find('Llama-2-7B'))
    fixed = q.total-q.pageable
    card = Device('cuda', 'card', fixed)
    assert 0<q.pageable and room(q, card)=='only by paging' and room(q, replace(card, memory=fixed-1))=='exceeded'
    assert room(q, replace(card, memory=q.total))=='0 B left' and room(q, replace(card, memory=q.total+GiB))=='1.00 GiB left'


def test_no_card_is_said_to_fit():
    for text in (str(plan(T4)), plan(T4)._repr_html_()):
        assert 'not a promise that they fit' in text and not re.search(r'\bfits\b', text) and 'not the peak' in text


def test_cards_without_a_figure_are_left_out():
    unknown = [d.name for d in gpus() if d.memory is None]
    assert unknown and not any(n in str(plan(T4)) for n in unknown)
    p = plan(CELL+'hardware: {gpu: H100}\n')
    assert p.device.name in unknown and 'counted for H100 80GB' in str(p)


@pytest.mark.parametrize('text,say', [(CELL.replace('Llama-2-7b-hf', 'Llama-2-7b-fh'), "line 1, model: .*Did you mean 'meta-llama/Llama-2-7b-hf'"),
    (CELL+'hardware: {gpu: T5}\n', "line 3, hardware.gpu: .*Did you mean 'T4'"),
    (CELL+'lora:\n  target_modules: [q_proj, up_porj]\n', "line 4, lora.target_modules: .*Did you mean 'up_proj'"), ('Llama 2 7B', "Did you mean 'Llama-2-7B'")])
def test_refused_in_one_line(text, say):
    with pytest.raises(QLoRAError, match=say) as e: plan(text)
    assert '\n' not in str(e.value)


def test_by_name_and_by_architecture():
    a = find('TinyLlama-1.1B')
    assert plan('tinyllama-1.1b')==plan(a) and plan(a).budget==budget(a)
    own = replace(a, name='mine', num_hidden_layers=2, hub_id='')
    assert plan(own).architecture==own


class Text(HTMLParser):
    "Collects cells and checks that elements are closed in order"
    def __init__(self):
        super().__init__()
        self.open,self.cells,self.labels = [],[],[]
    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag in ('td', 'th'): self.cells.append('')
        if dict(attrs).get('role')=='img': self.labels.append(dict(attrs)['aria-label'])
    def handle_startendtag(self, tag, attrs): pass
    def handle_endtag(self, tag): assert self.open.pop()==tag
    def handle_data(self, data):
        if 'title' not in self.open and any(t in ('td', 'th') for t in self.open): self.cells[-1] += data


def test_both_forms_show_the_same_tables():
    p = plan(T4)
    t = Text()
    t.feed(p._repr_html_())
    assert not t.open and len(t.labels)==3 and all('GiB' in l and 'weights' in l for l in t.labels)
    text = str(p)
    words = [w for c in t.cells for w in c.split() if any(ch.isdigit() for ch in w)]
    other = str(p.budgets[0])+str(p.budgets[1])
    assert len(words)>150 and all(w in text or w in other for w in words)
    assert all(w in ' '.join(t.cells)+' '.join(t.labels) for row in planner._methods(p)+planner._cards(p)+planner._quoted(p) for w in map(str, row))


def test_names_are_escaped():
    evil = replace(find('demo'), name='<script>x</script>')
    assert '<script>' not in plan(evil)._repr_html_() and isinstance(plan(evil), Plan)


def test_no_torch_for_a_plan():
    code = f"import sys; from qlora_nb import plan; p = plan({T4!r}); p._repr_html_(); print([m for m in ('torch', 'transformers', 'numpy', 'huggingface_hub') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip()=='[]'
