"One screen before renting: the answer first, one action, GPUs by the cost of the run, and the same without any style"
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import product

import pytest

from qlora_nb import style
from qlora_nb.facts.hardware import Device, Price, gpu
from qlora_nb.planning import planner
from qlora_nb.planning.fit import fit
from qlora_nb.planning.page import memory_bars
from qlora_nb.planning.planner import plan
from qlora_nb.planning.time import cost
from qlora_nb.render import GiB
from qlora_nb.screens import answer, ranking, renting
from qlora_nb.screens.bars import MEANINGS, Bar, memory_picture, scale, ticks
from qlora_nb.screens.words import long, middle
from qlora_nb.style import DARK, LIGHT, contrast, sheet

CELL = 'model: meta-llama/Llama-2-7b-hf\ndata: {train: tickets.jsonl}\n'
T4 = CELL+'hardware: {gpu: T4}\n'
ROWS = [100+n%900 for n in range(2000)]
TIGHT = T4+'training: {per_device_train_batch_size: 16, gradient_accumulation_steps: 1}\n'
LARGE = T4.replace('7b', '70b')


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch): monkeypatch.setattr(planner, 'glance', lambda: None)

@pytest.fixture(scope='module')
def whole(): return plan(T4, tokens=ROWS)


class Bare(HTMLParser):
    "The words that are left where style sheet, style attributes and hidden parts are taken away"
    def __init__(self):
        super().__init__()
        self.open,self.words = [],[]
    def handle_starttag(self, tag, attrs):
        if tag!='br': self.open.append((tag, tag=='style' or 'hidden' in dict(attrs)))
    def handle_endtag(self, tag): assert self.open.pop()[0]==tag
    def handle_data(self, data):
        if not any(gone for _,gone in self.open) and data.strip(): self.words.append(data.strip())

def words(html):
    bare = Bare()
    bare.feed(html)
    assert not bare.open
    return ' '.join(bare.words)


def test_the_answer_is_the_first_sentence(whole):
    html = whole._repr_html_()
    first = re.search(r'<h3>(.*?)</h3>', html)[1]
    hours,start = middle(whole.cost.hours),(5+15)/2/60
    low,high = ((hours+start)*price for price in gpu('T4').usd)
    said = f'Llama-2-7B with QLoRA trains on a T4 in about {hours:.1f} hours, for ${low:.2f} to ${high:.2f}.'
    assert first==f'<span class="tag ok">✓ Fits</span> {said}' and html.index('<h3>')<min(html.index(f'<{t}') for t in ('h4', 'table', 'details'))
    assert str(whole).splitlines()[0]==f'✓ Fits. {said}' and whole.to_markdown().splitlines()[0]=='### ✓ Fits. '+said.replace('$', '\\$')

@pytest.mark.parametrize('text,kw,says', [(TIGHT, {}, r'! Tight\. A T4 has 14\.56 GiB and this needs [\d.–]+ GiB: it may run out of memory on the longest batch\.'),
    (LARGE, {}, r'✗ Too big\. Llama-2-70B with QLoRA needs [\d.–]+ GiB, and a T4 has 14\.56 GiB\.'),
    (CELL, {}, r'≈ No GPU named\. Llama-2-7B with QLoRA needs [\d.–]+ GiB and fits on 53 of 53 GPUs\.'),
    (T4, {}, r'✓ Fits\. Llama-2-7B with QLoRA trains on a T4: about \d+ minutes and \$[\d.]+ to \$[\d.]+ per million tokens\.'),
    (T4, dict(gpu='RTX 3060 Ti'), r'✓ Fits\. Llama-2-7B with QLoRA trains on an RTX 3060 Ti: about \d+ minutes per million tokens\.'),
    (T4, dict(device=Device('cpu', 'old CPU', 64*GiB)), r'✓ Fits\. Llama-2-7B with QLoRA trains on an old CPU\.'),
    (T4, dict(gpus=2), r'✓ Fits\. Llama-2-7B with QLoRA trains on 2 × T4 \(DDP\): about [\d.]+ (hours|minutes) and \$[\d.]+ to \$[\d.]+ per million tokens\.')], ids=str)
def test_every_verdict_has_its_sentence(text, kw, says):
    p = plan(text, **kw)
    assert re.fullmatch(says, str(p).splitlines()[0]) and answer.answer(p) in words(p._repr_html_()) and p.to_dict()['answer']==str(p).splitlines()[0]


def test_the_action_says_what_it_buys(whole):
    act = answer.action(whole)
    assert act.kind=='' and act.lines==whole.suggestion.changes and act.section=='training' and 'Change two lines' in act.title
    saved = middle(whole.cost.hours)-middle(whole.cost_for(whole.suggestion.job).hours)
    assert saved>0 and act.title.endswith(f'to save {long(saved)}') and 'Same effective batch of 16' in act.gains
    html = whole._repr_html_()
    assert html.count('class="do')==1 and all(f'<code>{line}</code>' in html and f'  {line}\n' in str(whole) and f'`{line}`' in whole.to_markdown() for line in act.cell)
    assert [answer.action(plan(text)).kind for text in (TIGHT, T4+'training: {max_length: 4096, gradient_checkpointing: false}\n')]==['warn', 'bad']
    assert answer.action(plan(LARGE)) is None and 'class="do' not in plan(LARGE)._repr_html_()

def test_applying_the_action_gives_what_it_promises(whole):
    then = plan(whole.config.with_(**whole.suggestion.changes), tokens=ROWS)
    assert then.cost.hours==pytest.approx(whole.cost_for(whole.suggestion.job).hours) and then.device_bytes==whole.suggestion.fit.device
    assert then.here.best.job==whole.here.best.job and answer.action(then) is None


def test_gpus_are_ordered_by_the_cost_of_the_run(whole):
    table = renting.gpu_table(whole)
    costs = [float(row[1].text.lstrip('$')) for row in table.rows]
    by_name = {v.device.name: v for v in whole.gpu_verdicts}
    assert costs==sorted(costs) and len(costs)>=ranking.LEAST
    for row in table.rows:
        v = by_name[row[0].text]
        exact = (middle(v.best.cost.hours)+1/6)*v.device.prices[0].usd
        assert float(row[1].text.lstrip('$'))==pytest.approx(exact, abs=.006) and row[4]==v.best.job.batch
        assert row[7].text==f'${v.device.prices[0].usd:,.2f}' and v.device.prices[0].kind in row[7].small

def test_what_is_cheapest_fastest_and_yours_is_marked_in_place(whole):
    table = renting.gpu_table(whole)
    marked = {word: row[0].text for row in table.rows for word,_ in row[0].words}
    offers = [o for o in renting.offers(whole) if o.known]
    assert marked=={'cheapest': min(offers, key=lambda o: o.dollars).name, 'fastest': min(offers, key=lambda o: o.hours).name,
        'best value': min((o for o in offers if o.dollars<=2*min(o.dollars for o in offers)), key=lambda o: o.hours).name, 'your GPU': 'T4'}
    assert [table.rows[n][0].text for n in table.mine]==['T4'] and 0<table.mine[0]<len(table.rows)-1
    assert re.search(r'<tr class="me"><th scope="row"><b>T4</b> <span class="tag">your GPU</span>', whole._repr_html_())

def test_what_folds_costs_more_and_takes_longer(whole):
    shown,rest = ranking.shortlist(renting.offers(whole), 'T4')
    assert rest and all(any(s.dollars<=r.dollars and s.hours<=r.hours for s in shown) for r in rest)
    assert {o.name for o in shown+rest}=={o.name for o in renting.offers(whole) if o.known}

@pytest.mark.parametrize('rows', [None, ROWS])
def test_time_is_that_of_the_best_micro_batch(rows):
    p = plan(T4, tokens=rows)
    for v in (v for v in p.gpu_verdicts if v.best and v.best.cost.hours):
        job = planner.job_for(p.config, p.architecture, v.device, longest=p.work.longest)
        every = [job.changed(batch=b, accumulation=16//b) for b in (1, 2, 4, 8, 16)]
        safe = [j for j in every if fit(j, replace(p.machine, device=v.device)).verdict=='fits']
        hours = {j.batch: cost(j, v.device, p.work_of(j)).hours for j in safe}
        assert v.best.cost.hours==hours[v.best.job.batch]==min(hours.values()) and v.best.job.batch*v.best.job.accumulation==16
        assert v.cost.hours==cost(job, v.device, p.work_of(job)).hours>=v.best.cost.hours
    told = {g['name']: g for g in p.to_dict()['gpu_verdicts']}
    assert told['T4']['batch']==1 and told['T4']['best']['batch']==8 and told['T4']['best']['hours']==p.here.best.cost.hours<told['T4']['hours']==p.cost.hours

def test_padding_decides_about_the_best_micro_batch():
    "Rows in random order are padded to the longest of their micro-batch, and sorted ones are not"
    text = T4+'training: {train_sampling_strategy: %s}\n'
    mixed,alike = (plan(text % order, tokens=[16, 1024]*500) for order in ('random', 'auto'))
    assert mixed.here.best.job.batch<alike.here.best.job.batch and mixed.work_of(alike.here.best.job).tokens>1.5*alike.work_of(alike.here.best.job).tokens
    assert mixed.work_of(mixed.job).tokens==alike.work_of(alike.job).tokens==3*500*(16+1024)


def test_no_time_where_it_does_not_fit():
    p = plan(LARGE, tokens=ROWS)
    small = [v for v in p.gpu_verdicts if v.best is None]
    assert p.here in small and len(small)>20 and all(v.verdict=='no' for v in small)
    own,others = renting.gpu_table(p).rows[-1],renting.others(p).tables[-1].rows
    assert own[0].text=='T4' and ('✗ too big', 'bad') in own[0].words
    assert {row[0].text for row in [own, *others]}=={v.device.name for v in small} and all(row[1]==row[2]==row[3]==row[4]==row[6]=='' for row in [own, *others])
    told = p.to_dict()
    assert told['hours'] is told['dollars'] is None and all(g['best'] is g['hours'] is g['dollars'] is None for g in told['gpu_verdicts'] if g['name'] in {v.device.name for v in small})
    assert 'hour' not in str(p).splitlines()[0] and 'It is cheapest on' in str(p).splitlines()[1]

def test_a_run_that_is_tight_everywhere_is_shown_as_tight():
    p = plan(LARGE+'training: {max_length: 512}\n', gpu='A100 40GB')
    tight = [v for v in p.gpu_verdicts if v.best and v.best.fit.verdict=='tight']
    assert tight and all(v.best.job.batch==1 for v in tight)
    words_ = ranking.marks(renting.offers(p))
    assert not {v.device.name for v in tight} & set(words_)

def test_a_gpu_without_price_stands_at_the_end_and_has_its_time():
    p = plan(T4, gpu='RTX 3060 Ti', tokens=ROWS)
    row = renting.gpu_table(p).rows[-1]
    assert row[0].text=='RTX 3060 Ti' and row[1].text=='' and row[2].text.endswith(' h') and row[7]==''

def test_a_gpu_of_ones_own_is_one_row():
    "The driver's name of a GPU is not another GPU"
    mine = replace(gpu('T4'), name='Tesla T4')
    names = [v.device.name for v in plan(CELL, device=mine, tokens=ROWS).gpu_verdicts]
    assert 'Tesla T4' in names and 'T4' not in names

def test_prices_have_kind_and_date(whole):
    detail = renting.price_detail(whole)
    t4 = next(row for row in detail.tables[0].rows if row[0]=='T4')
    assert t4==['T4', '$0.15 Akash, 20 Sep', '$0.40 Hugging Face Jobs, 26 Nov', *t4[3:]] and '$0.53 AWS, 22 Nov' in t4
    assert {'community', 'secure', 'spot', 'hyperscaler', 'on-demand'}<=set(detail.tables[0].head) and any('subscription' in note for note in detail.notes)
    assert "Akash (community, 20 Sep) to " in answer.more(whole) and 'Colab (free): the run ends within a 12 h session.' in answer.more(whole)

def test_the_cause_and_the_setting_that_helps(whole):
    causes = {row[6] for row in renting.gpu_table(whole).rows}
    assert causes<={'matmul', 'memory', 'launch'} and 'matmul' in causes and '`gradient_checkpointing: false`' in renting.gpu_notes(whole)[1]
    off = plan(T4.replace('T4', 'B200')+'training: {gradient_checkpointing: false, max_length: 64}\n')
    assert 'effective batch helps' in renting.gpu_notes(off)[1] and 'gradient_checkpointing' not in renting.gpu_notes(off)[1]


def test_without_style_the_words_remain_in_the_same_order(whole):
    html = whole._repr_html_()
    bare = words(re.sub(r' (style|class|title)="[^"]*"', '', html))
    assert words(html)==bare
    marks = ['✓ Fits', 'trains on a T4', 'Change two lines', 'Memory by method', '◀ this config', '✗ too big', 'GPUs by cost of this run', 'cheapest', 'your GPU',
        'more GPUs', 'Settings that would change', 'Memory by phase', 'Every term', 'Prices per hour', 'Before the first step', 'Assumptions', 'Rules of thumb']
    for form in (bare, str(whole), whole.to_markdown()):
        at = [form.index(mark) if mark not in ('✓ Fits',) else 0 for mark in marks]
        assert [m for _,m in sorted(zip(at, marks))][:9]==marks[:9] and at[9:]==sorted(at[9:]), form[:80]
    for size in (cell for bar in memory_bars(whole) for cell in bar.cells()[2:-1]): assert size in str(whole) and size in whole.to_markdown()

def test_a_bar_keeps_width_and_colour_without_the_sheet(whole):
    segments = re.findall(r'<i class="(\w+)" title="[^"]+" style="([^"]+)"></i>', whole._repr_html_())
    assert {name for name,_ in segments}=={*MEANINGS, 'more'} and all(f'background-color:{style.BARE[name]}' in look and 'width:' in look and 'var(' not in look for name,look in segments)

def test_two_prices_are_no_formula(whole):
    "JupyterLab typesets what stands between two dollar signs"
    assert '<div class="qnb-screen tex2jax_ignore mathjax_ignore">' in whole._repr_html_() and not re.search(r'(?<!\\)\$', whole.to_markdown())

def test_the_page_needs_nothing_but_a_browser(whole):
    html = whole._repr_html_()
    assert html.count('<style')==1 and not re.search(r'<script|<link|<img|url\(|https?:|onclick', html) and len(html)<100_000

def test_no_name_becomes_markup():
    evil = Device('cuda', '<b>&evil', 20*GiB, (8, 0), True, prices=(Price(1., '<i>x', 'p', '2026-01-01', '<u>'),), bandwidth=900, tflops=100)
    html = plan(CELL, device=evil, tokens=ROWS)._repr_html_()
    assert not re.search(r'<b>&evil|<i>|<u>', html) and '&lt;b&gt;&amp;evil' in html


def test_text_can_be_read_in_both_themes():
    for theme in (LIGHT, DARK):
        pages = theme['page'],theme['panel'],*(['#212121'] if theme is DARK else [])
        for ink,ground in product(('ink', 'dim', *style.MEANINGS), pages): assert contrast(theme[ink], ground)>=4.5, (ink, ground)
        for meaning in style.MEANINGS:
            tint = theme[meaning+'-bg']
            assert all(contrast(theme[ink], tint)>=4.5 for ink in ('ink', 'dim', meaning)), meaning
        assert contrast(theme['on-weights'], theme['weights'])>=4.5 and all(contrast(theme[s], theme['page'])>=3 for s in style.SHAPES)

def test_each_theme_of_a_host_has_its_tokens():
    text = sheet()
    for mark in ('[data-jp-theme-light=false] .qnb-screen', '.vscode-dark .qnb-screen', 'html[theme=dark] .qnb-screen'): assert mark in text
    assert text.count(f"--dim:{DARK['dim']}")==2==text.count(f"--dim:{LIGHT['dim']}") and '@media(prefers-color-scheme:dark)' in text

@pytest.mark.parametrize('capacity', [None, 8*GiB, 14*GiB, 200*GiB])
def test_the_picture_holds_at_any_size(capacity):
    def sizes(*gib): return dict(zip(MEANINGS, (round(n*GiB) for n in gib)))
    bars = [Bar('a', '', sizes(3, .4, .6, .2), GiB, 'fits', True), Bar('b', '', sizes(12, .4, .6, .2), GiB, 'no'), Bar('c', '', sizes(25, 75, 25, 2), 30*GiB, 'no')]
    top,html = scale(bars, capacity),memory_picture(bars, capacity, 'X')
    assert top>=max(bars[0].needs[1], capacity or 0) and all(0<=float(w)<=100 for w in re.findall(r'(?:width|left):([\d.]+)%', html))
    assert 3<=len(ticks(top))<=6 and ticks(top)[-1][0]<=top and html.count('role="img"')==3 and html.count('class="cap"')==(3 if capacity else 0)
    assert html.count('bar torn')==sum(b.needs[1]>top for b in bars)
