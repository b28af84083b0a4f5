"What is trained of a conversation under templates of many shapes, against strings written by hand; and what a template drops, moves or changes has a name"
from dataclasses import replace
import json
from contextlib import nullcontext
import pytest, tiny
from hypothesis import HealthCheck, given, settings, strategies as st
from qlora_nb.errors import QLoRAError
from qlora_nb import parse
from qlora_nb.tokens.checks import SAID
from qlora_nb.tokens.gate import prepare
from qlora_nb.tokens.checks import says
from qlora_nb.tokens.labels import Encoder, encode, trained
from qlora_nb.tokens.templates import choose_template

SHAPES = {
    'llama-2': """{% if messages[0].role=='system' %}{% set sys='<<SYS>>\n'+messages[0].content+'\n<</SYS>>\n\n' %}{% set ms=messages[1:] %}{% else %}{% set sys='' %}{% set ms=messages %}{% endif %}
{%- for m in ms %}{% if (m.role=='user') != (loop.index0 % 2==0) %}{{ raise_exception('roles must alternate user and assistant') }}{% endif %}
{%- if m.role=='user' %}{{ bos_token+'[INST] '+(sys if loop.first else '')+m.content.strip()+' [/INST]' }}{% else %}{{ ' '+m.content.strip()+' '+eos_token }}{% endif %}{% endfor %}""",
    'llama-3': """{{ bos_token }}{% if tools %}{{ '<|start_header_id|>system<|end_header_id|>\n\nTools: '+tools | tojson+'<|eot_id|>' }}{% endif %}
{%- for m in messages %}{% if m.tool_calls %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n'+'{"name": "'+m.tool_calls[0].function.name+'", "parameters": '+m.tool_calls[0].function.arguments | tojson+'}<|eot_id|>' }}
{%- else %}{{ '<|start_header_id|>'+('ipython' if m.role=='tool' else m.role)+'<|end_header_id|>\n\n'+m.content | trim+'<|eot_id|>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}""",
    'mistral-v0.1': """{{ bos_token }}{% for m in messages %}{% if (m.role=='user') != (loop.index0 % 2==0) %}{{ raise_exception('roles must alternate user and assistant') }}{% endif %}
{%- if m.role=='user' %}{{ '[INST] '+m.content+' [/INST]' }}{% else %}{{ m.content+eos_token }}{% endif %}{% endfor %}""",
    'mistral-v0.3': """{% if messages[0].role=='system' %}{% set sys=messages[0].content %}{% set ms=messages[1:] %}{% else %}{% set ms=messages %}{% endif %}
{%- set ns=namespace(turn=0) %}{% for m in ms if m.role in ('user', 'assistant') and not m.tool_calls %}{% if (m.role=='user') != (ns.turn % 2==0) %}{{ raise_exception('roles must alternate user and assistant') }}{% endif %}{% set ns.turn=ns.turn+1 %}{% endfor %}{{ bos_token }}
{%- set users=ms | selectattr('role', 'equalto', 'user') | list %}
{%- for m in ms %}{% if m.role=='user' %}{% if tools and m==users[-1] %}{{ '[AVAILABLE_TOOLS] '+tools | tojson+'[/AVAILABLE_TOOLS]' }}{% endif %}
{%- if loop.last and sys is defined %}{{ '[INST] '+sys+'\n\n'+m.content+'[/INST]' }}{% elif not loop.last and sys is defined and m==users[-1] %}{{ '[INST] '+sys+'\n\n'+m.content+'[/INST]' }}{% else %}{{ '[INST] '+m.content+'[/INST]' }}{% endif %}
{%- elif m.tool_calls %}{{ '[TOOL_CALLS] [' }}{% for c in m.tool_calls %}{{ c.function | tojson }}{% if not loop.last %}, {% endif %}{% endfor %}{{ ']'+eos_token }}
{%- elif m.role=='assistant' %}{{ ' '+m.content+eos_token }}{% elif m.role=='tool' %}{{ '[TOOL_RESULTS] '+m.content+'[/TOOL_RESULTS]' }}{% else %}{{ raise_exception('only user, assistant and tool') }}{% endif %}{% endfor %}""",
    'gemma': """{{ bos_token }}{% if messages[0].role=='system' %}{{ raise_exception('system role not supported') }}{% endif %}
{%- for m in messages %}{% if (m.role=='user') != (loop.index0 % 2==0) %}{{ raise_exception('roles must alternate user and assistant') }}{% endif %}
{{- '<start_of_turn>'+('model' if m.role=='assistant' else m.role)+'\n'+m.content | trim+'<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}""",
    'qwen2.5': """{% set first=messages[0].role=='system' %}{{ '<|im_start|>system\n'+(messages[0].content if first else 'You help.') }}{% if tools %}{{ '\n# Tools\n' }}{% for t in tools %}{{ t | tojson+'\n' }}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}
{%- for m in messages %}{% if m.role=='user' or (m.role=='system' and not loop.first) or (m.role=='assistant' and not m.tool_calls) %}{{ '<|im_start|>'+m.role+'\n'+m.content+'<|im_end|>\n' }}
{%- elif m.role=='assistant' %}{{ '<|im_start|>assistant' }}{% if m.content %}{{ '\n'+m.content }}{% endif %}{% for c in m.tool_calls %}{{ '\n<tool_call>\n{"name": "'+c.function.name+'", "arguments": '+c.function.arguments | tojson+'}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}
{%- elif m.role=='tool' %}{{ '<|im_start|>user\n<tool_response>\n'+m.content+'\n</tool_response><|im_end|>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
    'qwen3': """{% if tools %}{{ '<|im_start|>system\n'+(messages[0].content+'\n\n' if messages[0].role=='system' else '')+'# Tools\n' }}{% for t in tools %}{{ t | tojson+'\n' }}{% endfor %}{{ '<|im_end|>\n' }}
{%- elif messages[0].role=='system' %}{{ '<|im_start|>system\n'+messages[0].content+'<|im_end|>\n' }}{% endif %}
{%- set ns=namespace(last=-1) %}{% for m in messages %}{% if m.role=='user' and not (m.content.startswith('<tool_response>') and m.content.endswith('</tool_response>')) %}{% set ns.last=loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}{% if m.role=='user' or (m.role=='system' and not loop.first) %}{{ '<|im_start|>'+m.role+'\n'+m.content+'<|im_end|>\n' }}
{%- elif m.role=='assistant' %}{% set c=m.content if m.content is string else '' %}{% set r='' %}
{%- if m.reasoning_content is string %}{% set r=m.reasoning_content %}{% elif '</think>' in c %}{% set r=c.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}{% set c=c.split('</think>')[-1].lstrip('\n') %}{% endif %}
{%- if loop.index0>ns.last and (loop.last or r) %}{{ '<|im_start|>assistant\n<think>\n'+r.strip('\n')+'\n</think>\n\n'+c.lstrip('\n') }}{% else %}{{ '<|im_start|>assistant\n'+c }}{% endif %}
{%- for call in m.tool_calls or [] %}{{ ('' if loop.first and not c else '\n')+'<tool_call>\n{"name": "'+call.function.name+'", "arguments": '+(call.function.arguments if call.function.arguments is string else call.function.arguments | tojson)+'}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}
{%- elif m.role=='tool' %}{{ '<|im_start|>user\n<tool_response>\n'+m.content+'\n</tool_response><|im_end|>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
    'phi-3': """{% for m in messages %}{% if m.role=='system' and m.content %}{{ '<|system|>\n'+m.content+'<|end|>\n' }}{% elif m.role=='user' %}{{ '<|user|>\n'+m.content+'<|end|>\n' }}
{%- elif m.role=='assistant' %}{{ '<|assistant|>\n'+m.content+'<|end|>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}""",
    'deepseek-r1': """{% set ns=namespace(sys='') %}{% for m in messages if m.role=='system' %}{% set ns.sys=ns.sys+m.content %}{% endfor %}{{ bos_token+ns.sys }}
{%- for m in messages %}{% if m.role=='user' %}{{ '<U>'+m.content }}
{%- elif m.tool_calls %}{% for c in m.tool_calls %}{{ ('<A><CALLS>' if loop.first else '\n')+'<CALL>'+c.function.name+'\n'+c.function.arguments+'</CALL>' }}{% endfor %}{{ '</CALLS>'+eos_token }}
{%- elif m.role=='assistant' %}{{ '<A>'+m.content.split('</think>')[-1]+eos_token }}{% elif m.role=='tool' %}{{ '<OUT>'+m.content+'</OUT>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<A><think>\n' }}{% endif %}""",
    'chatml': """{% for m in messages %}{{ '<|im_start|>'+m.role+'\n'+m.content+'<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
    'gpt-oss': """{{ '<|start|>system<|message|>You help.<|end|>' }}{% if messages[0].role=='system' or tools %}{{ '<|start|>developer<|message|>' }}{% if messages[0].role=='system' %}{{ '# Instructions\n\n'+messages[0].content }}{% endif %}{% if tools %}{{ '# Tools\n' }}{% for t in tools %}{{ t.function.name }}{% endfor %}{% endif %}{{ '<|end|>' }}{% endif %}
{%- for m in messages %}{% if m.role=='user' %}{{ '<|start|>user<|message|>'+m.content+'<|end|>' }}
{%- elif m.role=='assistant' and m.tool_calls %}{{ '<|start|>assistant to=functions.'+m.tool_calls[0].function.name+'<|channel|>commentary json<|message|>'+m.tool_calls[0].function.arguments | tojson+'<|call|>' }}
{%- elif m.role=='assistant' %}{% if '<think>' in m.content %}{{ raise_exception('put the thinking beside the content') }}{% endif %}
{%- if loop.last and m.reasoning_content %}{{ '<|start|>assistant<|channel|>analysis<|message|>'+m.reasoning_content+'<|end|>' }}{% endif %}{{ '<|start|>assistant<|channel|>final<|message|>'+m.content+('<|return|>' if loop.last and not add_generation_prompt else '<|end|>') }}
{%- elif m.role=='tool' %}{{ '<|start|>functions to=assistant<|channel|>commentary<|message|>'+m.content | tojson+'<|end|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""}
SPECIAL = {'llama-3': '<|start_header_id|> <|end_header_id|> <|eot_id|>', 'gemma': '<start_of_turn> <end_of_turn>', 'phi-3': '<|system|> <|user|> <|assistant|> <|end|>',
    'deepseek-r1': '<U> <A> <CALLS> </CALLS> <CALL> </CALL> <OUT> </OUT>', 'gpt-oss': '<|start|> <|end|> <|message|> <|channel|> <|return|> <|call|>',
    'mistral-v0.3': '[INST] [/INST] [TOOL_CALLS] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS]',
    **dict.fromkeys(('chatml', 'qwen2.5', 'qwen3'), '<|im_start|> <|im_end|>')}
EOS = {'gpt-oss': '<|return|>', **dict.fromkeys(('chatml', 'qwen2.5', 'qwen3'), '<|im_end|>')}

def tokenizer(name):
    tok = tiny.tokenizer(SHAPES[name])
    tok.add_special_tokens(dict(additional_special_tokens=SPECIAL.get(name, '').split()))
    if name in EOS: tok.eos_token = EOS[name]
    return tok

def text(tok, ids): return ''.join(tok.convert_ids_to_tokens(ids))
def learned(tok, e): return text(tok, [t for t in e['labels'] if t!=-100])
def said(*turns): return [dict(role=r, content=c) for r,c in turns]

TOOL = dict(type='function', function=dict(name='find', description='Finds', parameters={}))
def call(name='find', **arguments): return dict(role='assistant', content=None, tool_calls=[dict(type='function', function=dict(name=name, arguments=arguments))])

def conversation(turns, system, kind):
    "Questions that are all alike, as many answers as there are turns; a system text at the beginning, in the middle, or none"
    ms = []
    for answer in ('One', 'Two', 'Three')[:turns]:
        ms += said(('user', 'Ask'))
        if kind=='call': ms += [call(q=answer), dict(role='tool', name='find', content='Found')]
        ms += said(('assistant', f'<think>\nHm\n</think>\n\n{answer}' if kind=='thinking' else answer))
    if system=='first': ms = said(('system', 'Rule'))+ms
    if system=='middle': ms = [*ms[:-1], *said(('system', 'Rule')), ms[-1]] if turns==1 else [*ms[:-2], *said(('system', 'Rule')), *ms[-2:]]
    if kind=='call': ms[0]['tools'] = [TOOL]
    return ms

# ---- shapes × turns × system × kind

R = '<think>\nHm\n</think>\n\n' # The reasoning of every answer, in the row
TO = ' to=functions.find<|channel|>commentary json<|message|>'
FINAL = '<|channel|>final<|message|>'
LEARNED = { # shape → kind → what is trained of one turn, and of three
    'llama-2': dict(plain=(' One </s>', ' One </s> Two </s> Three </s>'), thinking=(f' {R}One </s>', f' {R}One </s> {R}Two </s> {R}Three </s>')),
    'llama-3': dict(plain=('One<|eot_id|></s>', 'One<|eot_id|>Two<|eot_id|>Three<|eot_id|></s>'), thinking=(f'{R}One<|eot_id|></s>', f'{R}One<|eot_id|>{R}Two<|eot_id|>{R}Three<|eot_id|></s>'),
        call=('{"name": "find", "parameters": {"q": "One"}}<|eot_id|>One<|eot_id|></s>', '{"name": "find", "parameters": {"q": "One"}}<|eot_id|>One<|eot_id|>'
            '{"name": "find", "parameters": {"q": "Two"}}<|eot_id|>Two<|eot_id|>{"name": "find", "parameters": {"q": "Three"}}<|eot_id|>Three<|eot_id|></s>')),
    'mistral-v0.1': dict(plain=('One</s>', 'One</s>Two</s>Three</s>'), thinking=(f'{R}One</s>', f'{R}One</s>{R}Two</s>{R}Three</s>')),
    'mistral-v0.3': dict(plain=(' One</s>', ' One</s> Two</s> Three</s>'), thinking=(f' {R}One</s>', f' {R}One</s> {R}Two</s> {R}Three</s>'),
        call=('[TOOL_CALLS] [{"name": "find", "arguments": {"q": "One"}}]</s> One</s>', '[TOOL_CALLS] [{"name": "find", "arguments": {"q": "One"}}]</s> One</s>'
            '[TOOL_CALLS] [{"name": "find", "arguments": {"q": "Two"}}]</s> Two</s>[TOOL_CALLS] [{"name": "find", "arguments": {"q": "Three"}}]</s> Three</s>')),
    'gemma': dict(plain=('One<end_of_turn></s>', 'One<end_of_turn>Two<end_of_turn>Three<end_of_turn></s>'),
        thinking=(f'{R}One<end_of_turn></s>', f'{R}One<end_of_turn>{R}Two<end_of_turn>{R}Three<end_of_turn></s>')),
    'qwen2.5': dict(plain=('One<|im_end|>', 'One<|im_end|>Two<|im_end|>Three<|im_end|>'), thinking=(f'{R}One<|im_end|>', f'{R}One<|im_end|>{R}Two<|im_end|>{R}Three<|im_end|>'),
        call=('<tool_call>\n{"name": "find", "arguments": {"q": "One"}}\n</tool_call><|im_end|>One<|im_end|>', '<tool_call>\n{"name": "find", "arguments": {"q": "One"}}\n</tool_call><|im_end|>One<|im_end|>'
            '<tool_call>\n{"name": "find", "arguments": {"q": "Two"}}\n</tool_call><|im_end|>Two<|im_end|><tool_call>\n{"name": "find", "arguments": {"q": "Three"}}\n</tool_call><|im_end|>Three<|im_end|>')),
    'qwen3': dict(plain=('<think>\n\n</think>\n\nOne<|im_end|>', 'One<|im_end|>Two<|im_end|><think>\n\n</think>\n\nThree<|im_end|>'), thinking=(f'{R}One<|im_end|>', f'One<|im_end|>Two<|im_end|>{R}Three<|im_end|>'),
        call=('<tool_call>\n{"name": "find", "arguments": {"q": "One"}}\n</tool_call><|im_end|><think>\n\n</think>\n\nOne<|im_end|>',
            '<tool_call>\n{"name": "find", "arguments": {"q": "One"}}\n</tool_call><|im_end|>One<|im_end|><tool_call>\n{"name": "find", "arguments": {"q": "Two"}}\n</tool_call><|im_end|>Two<|im_end|>'
            '<tool_call>\n{"name": "find", "arguments": {"q": "Three"}}\n</tool_call><|im_end|><think>\n\n</think>\n\nThree<|im_end|>')),
    'phi-3': dict(plain=('One<|end|>\n</s>', 'One<|end|>Two<|end|>Three<|end|>\n</s>'), thinking=(f'{R}One<|end|>\n</s>', f'{R}One<|end|>{R}Two<|end|>{R}Three<|end|>\n</s>'),
        call=('One<|end|>\n</s>', 'One<|end|>Two<|end|>Three<|end|>\n</s>')),
    'deepseek-r1': dict(plain=('One</s>', 'One</s>Two</s>Three</s>'), thinking=('\n\nOne</s>', '\n\nOne</s>\n\nTwo</s>\n\nThree</s>'),
        call=('<CALLS><CALL>find\n{"q": "One"}</CALL></CALLS></s>One</s>', '<CALLS><CALL>find\n{"q": "One"}</CALL></CALLS></s>One</s>'
            '<CALLS><CALL>find\n{"q": "Two"}</CALL></CALLS></s>Two</s><CALLS><CALL>find\n{"q": "Three"}</CALL></CALLS></s>Three</s>')),
    'chatml': dict(plain=('One<|im_end|>', 'One<|im_end|>Two<|im_end|>Three<|im_end|>'), thinking=(f'{R}One<|im_end|>', f'{R}One<|im_end|>{R}Two<|im_end|>{R}Three<|im_end|>'),
        call=('One<|im_end|>', 'One<|im_end|>Two<|im_end|>Three<|im_end|>')),
    'gpt-oss': dict(plain=(f'{FINAL}One<|return|>', f'{FINAL}One<|end|>{FINAL}Two<|end|>{FINAL}Three<|return|>'),
        call=(TO+'{"q": "One"}<|call|>'+f'{FINAL}One<|return|>', TO+'{"q": "One"}<|call|>'+f'{FINAL}One<|end|>'+TO+'{"q": "Two"}<|call|>'+f'{FINAL}Two<|end|>'+TO+'{"q": "Three"}<|call|>'+f'{FINAL}Three<|return|>'))}
ALTERNATE = 'roles must alternate user and assistant'
REFUSED = { # shape → kind or place of the system text → the template's own words
    'llama-2': dict(middle=ALTERNATE, call=ALTERNATE), 'mistral-v0.1': dict(first=ALTERNATE, middle=ALTERNATE, call=ALTERNATE), 'mistral-v0.3': dict(middle='only user, assistant and tool'),
    'gemma': dict(first='system role not supported', middle=ALTERNATE, call=ALTERNATE), 'gpt-oss': dict(thinking='put the thinking beside the content')}
FOUND = { # shape → what is counted, by kind, place of the system text, and number of turns; '' always
    'mistral-v0.3': {'first 3': {'moved'}}, 'qwen3': {'thinking 3': {'reasoning'}}, 'phi-3': {'call': {'calls', 'tools', 'untrained', 'no_text'}},
    'deepseek-r1': {'': {'differs'}, 'thinking': {'reasoning'}, 'middle': {'moved'}, 'call': {'tools'}}, 'chatml': {'call': {'calls', 'tools', 'untrained'}}, 'gpt-oss': {'middle': {'no_system'}}}

@pytest.mark.parametrize('kind', ['plain', 'thinking', 'call'])
@pytest.mark.parametrize('system', ['none', 'first', 'middle'])
@pytest.mark.parametrize('turns', [1, 3])
@pytest.mark.parametrize('name', SHAPES)
def test_every_answer_is_trained_exactly_and_what_is_not_there_is_named(name, turns, system, kind):
    tok = tokenizer(name)
    e = Encoder(tok, choose_template(tok)).all([conversation(turns, system, kind)])[0]
    refused = REFUSED.get(name, {})
    if system in refused or kind in refused: return pytest.fail(str(e)) if e not in (refused.get(system), refused.get(kind)) else None
    assert learned(tok, e)==LEARNED[name][kind][turns==3] and not e['merged']
    where = ('', kind, system, f'{kind} {turns}', f'{system} {turns}')
    assert set(e['found'])==set().union(*(FOUND.get(name, {}).get(o, ()) for o in where)) and set(e['found'])<=set(SAID)

def test_reasoning_beside_the_answer_is_trained_where_the_template_writes_it():
    for name,wanted in {'qwen3': f'{R}One<|im_end|>', 'gpt-oss': '<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>final<|message|>One<|return|>'}.items():
        tok = tokenizer(name)
        e = encode(tok, choose_template(tok), [*said(('user', 'Ask')), dict(role='assistant', content='One', reasoning_content='Hm')])
        assert learned(tok, e)==wanted and e['found']=={}
    tok = tokenizer('chatml')
    e = encode(tok, choose_template(tok), [*said(('user', 'Ask')), dict(role='assistant', content='One', reasoning_content='Hm')])
    assert learned(tok, e)=='One<|im_end|>' and e['found']==dict(reasoning='Hm')

# ---- the same answers, whatever stands around them

def test_an_answer_that_stands_elsewhere_too_is_found_in_its_own_place():
    tok = tokenizer('mistral-v0.3')
    e = encode(tok, choose_template(tok), said(('system', 'a'), ('user', 'a'), ('assistant', 'a'), ('user', 'INST'), ('assistant', 'a')))
    assert text(tok, e['input_ids'])=='<s>[INST] a[/INST] a</s>[INST] a\n\nINST[/INST] a</s>' and learned(tok, e)==' a</s> a</s>' and e['found']==dict(moved='a')

def test_a_template_that_looks_at_the_first_characters_of_a_message():
    tok = tokenizer('qwen3')
    ms = said(('user', 'Ask'), ('assistant', 'Call'), ('user', '<tool_response>\nx\n</tool_response>'), ('assistant', 'Call'))
    e = encode(tok, choose_template(tok), ms)
    assert learned(tok, e)=='Call<|im_end|><think>\n\n</think>\n\nCall<|im_end|>' and e['found']=={}

@pytest.mark.parametrize('name', SHAPES)
def test_a_tokenizer_without_offsets_gives_the_same_labels(name):
    from transformers import PreTrainedTokenizerFast
    class Slow(PreTrainedTokenizerFast): is_fast = False
    tok,slow = tokenizer(name),tokenizer(name)
    slow.__class__ = Slow
    ms = conversation(3, 'none', 'plain')
    assert encode(slow, choose_template(slow), ms)==encode(tok, choose_template(tok), ms)

# ---- rows of a file

def ready(tok, rows, training='', **data):
    d = ''.join(f'  {k}: {json.dumps(v)}\n' for k,v in (dict(train='rows', max_lost=1)|data).items())
    return prepare(parse(f'model: demo\ndata:\n{d}training: {{max_length: 400{training}}}'), tok, dict(rows=rows))

@pytest.fixture(autouse=True)
def folder(empty): return empty

def test_a_lost_system_text_is_said_in_plain_words():
    tok = tiny.tokenizer("{% for m in messages if m.role!='system' %}{{ m.content+eos_token }}{% endfor %}")
    d = ready(tok, [dict(messages=conversation(1, 'first', 'plain')) for _ in range(2)])
    assert d.train.notes[0]=='train: 2 rows whose system text is not in the rendered row: this template leaves it out there (first: rows, row 1: Rule)'
    assert 'leaves it out there' in str(ready(tok, tiny.rows(2), system='Rule')) and 'leaves it out there' in d._repr_html_()

def test_a_row_none_of_whose_answers_is_there_is_left_out():
    tok = tiny.tokenizer("{% for m in messages %}{% if m.role=='user' or m.content!='Lost' %}{{ m.content+eos_token }}{% endif %}{% endfor %}")
    tok.chat_template = tok.chat_template.replace("m.content!='Lost'", "'Lost' not in m.content")
    d = ready(tok, [dict(prompt='a', completion='Lost'), dict(prompt='a', completion='b'), dict(messages=said(('user', 'a'), ('assistant', 'Lost'), ('user', 'c'), ('assistant', 'd')))][:2])
    assert d.train.findings['lost'].rows==1 and len(d.train)==1
    assert 'left out (rows, row 1: 1 of 1 answers: Lost)' in str(d.train.findings['lost'])

def test_some_answers_that_are_not_there_are_counted():
    tok = tiny.tokenizer("{% for m in messages %}{% if 'Lost' not in m.content %}{{ m.content+eos_token }}{% endif %}{% endfor %}")
    d = ready(tok, [dict(messages=said(('user', 'a'), ('assistant', 'Lost'), ('user', 'c'), ('assistant', 'd')))])
    assert d.train.findings['untrained'].example=='1 of 2 answers: Lost' and learned(tok, d.train.dataset[0])=='d</s>'

def test_an_empty_turn_is_never_trained():
    tok = tokenizer('chatml')
    ms = said(('user', 'a'), ('assistant', ''), ('user', 'b'), ('assistant', 'c'))
    e = encode(tok, choose_template(tok), ms)
    assert learned(tok, e)=='c<|im_end|>' and e['found']==dict(blank='message 2')

def test_a_message_that_is_not_to_be_trained_is_not():
    tok = tokenizer('chatml')
    ms = said(('user', 'a'), ('assistant', 'b'), ('user', 'c'), ('assistant', 'd'))
    ms[1]['train'] = False
    e = encode(tok, choose_template(tok), ms)
    assert learned(tok, e)=='d<|im_end|>' and e['found']=={} and 'train' not in text(tok, e['input_ids'])

# ---- Llama-2 of the house

@pytest.mark.parametrize('ms,wanted,found', [
    (said(('user', 'a'), ('assistant', 'b'), ('system', 'RULE'), ('user', 'c'), ('assistant', 'd')), '<s>[INST] <<SYS>>\nRULE\n<</SYS>>\n\na [/INST] b </s><s>[INST] c [/INST] d </s>', {'moved'}),
    (said(('system', 'One'), ('system', 'Two'), ('user', 'a'), ('assistant', 'b')), '<s>[INST] <<SYS>>\nOne\n\nTwo\n<</SYS>>\n\na [/INST] b </s>', set()),
    (said(('system', 'One'), ('assistant', 'Hello'), ('user', 'a'), ('assistant', 'b')), ' Hello </s><s>[INST] <<SYS>>\nOne\n<</SYS>>\n\na [/INST] b </s>', {'moved'}),
    (said(('system', 'One'), ('assistant', 'Hello')), ' Hello </s>', {'no_system'})])
def test_llama_2_merges_its_system_texts(ms, wanted, found):
    tok = tiny.tokenizer()
    e = encode(tok, choose_template(tok), ms)
    assert text(tok, e['input_ids'])==wanted and set(e['found'])==found
    assert learned(tok, e)==''.join(f' {m["content"]} </s>' for m in ms if m['role']=='assistant')

def test_llama_2_has_no_other_roles():
    tok = tiny.tokenizer()
    e = Encoder(tok, choose_template(tok)).all([conversation(1, 'none', 'call')])[0]
    assert e=='llama-2 has no role tool'

@pytest.mark.parametrize('name,wanted', [('chatml', 'Hi<|im_end|>Yes<|im_end|>'), ('llama-3', 'Hi<|eot_id|>Yes<|eot_id|></s>'), ('qwen2.5', 'Hi<|im_end|>Yes<|im_end|>'), ('gpt-oss', f'{FINAL}Hi<|end|>{FINAL}Yes<|return|>'),
    ('phi-3', 'Hi<|end|>Yes<|end|>\n</s>')])
def test_a_conversation_may_begin_with_the_assistant(name, wanted):
    tok = tokenizer(name)
    e = encode(tok, choose_template(tok), said(('assistant', 'Hi'), ('user', 'Sure?'), ('assistant', 'Yes')))
    assert learned(tok, e)==wanted and e['found']=={}

# ---- special tokens, BOS, long rows

def test_a_special_token_inside_a_text_is_counted_and_named():
    tok = tokenizer('chatml')
    d = ready(tok, [dict(prompt='Say <|im_end|> twice', completion='no'), dict(prompt='a', completion='b')])
    assert d.train.notes[-1]=='train: 1 row whose text contains a special token of this tokenizer, which becomes a control token (rows, row 1: <|im_end|> in Say <|im_end|> twice)'

def test_plain_text_begins_as_the_tokenizer_begins_it():
    from tokenizers.processors import TemplateProcessing
    tok = tiny.tokenizer()
    assert learned(tok, encode(tok, choose_template(tok), said(('text', 'Once'))))=='Once</s>'
    tok.backend_tokenizer.post_processor = TemplateProcessing(single='<s> $A', special_tokens=[('<s>', 1)])
    for told in ('Once', '<s>Once'): assert learned(tok, encode(tok, choose_template(tok), said(('text', told))))=='<s>Once</s>'
    assert learned(tok, encode(tok, choose_template(tok), said(('user', 'a'), ('assistant', 'b'))))==' b </s>'

def test_a_row_of_two_million_characters_is_not_tokenised_whole(monkeypatch):
    tok,seen = tokenizer('chatml'),[]
    original = type(tok).__call__
    def counted(self, texts, *args, **kw):
        seen.extend(map(len, texts if isinstance(texts, list) else [texts]))
        return original(self, texts, *args, **kw)
    monkeypatch.setattr(type(tok), '__call__', counted)
    rows = [dict(prompt='a', completion='b '*1_000_000), dict(prompt='c', completion='d')]
    d = prepare(parse('model: demo\ndata: {train: rows}\ntraining: {max_length: 64}'), tok, dict(rows=rows))
    assert sum(seen)<=110_000 and list(d.train.kept)==[64, len(d.train.dataset[1]['input_ids'])] and learned(tok, d.train.dataset[0])=='b '*22
    assert abs(int(d.train.lengths[0])-2_000_026)<2_000 and d.train.findings['estimated'].rows==1 and 'truncated' in d.train.findings

# ---- one way from messages to tokens

@pytest.mark.parametrize('rows,data', [([dict(dialogue='Long talk', summary='Short')], {}), ([dict(text='Long talk', label='good')], {}), ([dict(prompt='Long talk', completion='b')], dict(system='Be kind')),
    ([dict(q='Long talk', a='b')], dict(prompt='Q: {q}\nA:', completion='a')), ([dict(q='Long talk', a='b')], dict(prompt='q', completion='a'))])
def test_a_prompt_of_ones_own_is_rendered_as_those_of_the_rows(rows, data):
    tok = tiny.tokenizer()
    d = ready(tok, rows, **data)
    asked = d.template.prompt(tok, d.prompts.messages('Long talk'))
    row = d.train.dataset[0]
    assert text(tok, [i for i,t in zip(row['input_ids'], row['labels']) if t==-100])==asked

def test_a_system_text_that_is_filled_from_a_column_has_to_be_given():
    from qlora_nb.errors import QLoRAError
    d = ready(tiny.tokenizer(), [dict(prompt='a', completion='b', tone='Kind')], system='Be {tone}')
    with pytest.raises(QLoRAError, match='data.system: is filled from tone in each row, which a prompt of your own has not. Give the system text: --system'): d.prompts.messages('a')
    assert d.prompts.messages('a', 'Be Kind')==d.train.messages[0][:-1] and d.prompts.messages('a', '')==said(('user', 'a'))

def test_the_system_text_may_be_a_column_and_a_typo_is_refused():
    from qlora_nb.errors import QLoRAError
    rows = [dict(prompt='a', completion='b', system_text='Kind'), dict(prompt='a', completion='b', system_text='Brief')]
    assert [m[0]['content'] for m in ready(tiny.tokenizer(), rows, system='system_text').train.messages]==['Kind', 'Brief']
    with pytest.raises(QLoRAError, match="data.system: no column 'sytem_text' for {sytem_text}.*Did you mean 'system_text'"): ready(tiny.tokenizer(), rows, system='{sytem_text}')

def test_plain_text_is_asked_as_plain_text():
    tok = tiny.tokenizer()
    d = ready(tok, [dict(text='Once upon')])
    assert d.template.prompt(tok, d.prompts.messages('Once'))=='Once' and '[INST]' not in text(tok, d.train.dataset[0]['input_ids'])
    from tokenizers.processors import TemplateProcessing
    tok.backend_tokenizer.post_processor = TemplateProcessing(single='<s> $A', special_tokens=[('<s>', 1)])
    assert d.template.prompt(tok, d.prompts.messages('Once'))=='<s>Once'

def test_everything_that_asks_the_model_asks_in_the_same_words(monkeypatch):
    from types import SimpleNamespace as S
    from qlora_nb.results import evaluate
    from qlora_nb.training import watch
    tok,seen = tiny.tokenizer(),[]
    d = ready(tok, [dict(dialogue='Talk', summary='Short')], system='Be kind')
    def noted(model, tok, template, prompts, *args, **kw):
        seen.extend(template.prompt(tok, o) for o in prompts)
        return ['']*len(prompts)
    d.train.task = replace(d.task, answer=noted)
    tracking = S(sample_prompts=('Talk',), sample_steps=1)
    def event(*args, **kw): pass
    run = tiny.ended(data=d, tokenizer=tok, model='model', config=S(tracking=tracking), step=1, samples=[], trainer=S(model=None), event=event)
    monkeypatch.setattr(evaluate, 'base_model', nullcontext)
    evaluate.generate(run, 'Talk')
    evaluate.compare(run, prompts=['Talk'])
    evaluate.compare(run)
    watch.sample(run)
    assert len(seen)==6 and set(seen)=={'<s>[INST] <<SYS>>\nBe kind\n<</SYS>>\n\nSummarize the following text.\n\nTalk [/INST]'}

def test_token_ids_beyond_the_embedding_are_found_before_the_first_step():
    from qlora_nb.errors import QLoRAError
    from qlora_nb.tokens.checks import check_ids
    tok = tiny.tokenizer()
    tok.add_tokens([f'<x{i}>' for i in range(40)])
    d = ready(tok, [dict(prompt='q', completion='a'), dict(prompt='q', completion='<x35> a')])
    check_ids(d.train, len(tok))
    with pytest.raises(QLoRAError, match=r"model: rows, row 2: the token '<x35>' has the number 134, but the model has 128 tokens, numbered from 0"): check_ids(d.train, 128)

# ---- any conversation under any of the templates

WORDS = st.sampled_from(['a', 'Ask', 'user', 'assistant', 'One', 'b c', ' x ', 'x\n', '\ny', '[INST]', '</think>', '<think>\nz\n</think>\n\nq', '<tool_response>r</tool_response>', 'system', '', '  ', 'a'*40])
TURN = st.tuples(st.sampled_from(['user', 'assistant', 'assistant', 'system', 'tool', 'call']), WORDS, WORDS, st.booleans())

def built(turns):
    ms = []
    for role,content,thought,plain in turns:
        if role=='call': ms.append(call(name=content.strip() or 'find', q=thought))
        else: ms.append(dict(role=role, content=content)|(dict(reasoning_content=thought) if role=='assistant' and not plain else {}))
    return ms

ENCODERS = {}
def encoder(name):
    if name not in ENCODERS:
        tok = tokenizer(name)
        ENCODERS[name] = Encoder(tok, choose_template(tok))
    return ENCODERS[name]

def strings(m): return [m.get('content') or '', m.get('reasoning_content') or '']

@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(turns=st.lists(TURN, min_size=1, max_size=7), order=st.booleans())
@pytest.mark.parametrize('name', SHAPES)
def test_nothing_is_lost_without_a_word(name, turns, order):
    if order: turns = [(('user', 'assistant')[i%2], *rest) for i,(_,*rest) in enumerate(turns)]
    ms,coder = built(turns),encoder(name)
    answers = trained(ms, ('assistant',))
    if not answers: return
    ms = ms[:answers[-1]+1]
    e = coder.all([ms])[0]
    if isinstance(e, str) or 'lost' in e['found']: return
    whole,labels = text(coder.tok, e['input_ids']),learned(coder.tok, e)
    found = set(e['found'])
    for i,m in enumerate(ms):
        for part in filter(None, (o.strip() for o in strings(m))):
            if part not in whole: assert found & {'no_text', 'no_system', 'reasoning', 'changed', 'untrained', 'calls'}, (part, e['found'])
            if i in answers and part not in labels: assert found & {'untrained', 'reasoning', 'changed', 'no_text', 'differs', 'calls'}, (part, labels, e['found'])
    if not found & {'differs', 'untrained', 'changed', 'reasoning', 'special'}: # Then the trained tokens are the answers and nothing else
        stretches = [o for o in ''.join('\0' if t==-100 else coder.tok.convert_ids_to_tokens(t) for t in e['labels']).split('\0') if o]
        assert len(stretches)<=len(answers)
        assert sum(map(len, stretches))<=sum(len(says(ms[i]))+120 for i in answers)

def test_a_refusal_of_the_template_names_the_way_out():
    d = ready(tokenizer('gemma'), [dict(messages=conversation(1, 'first', 'plain')), *tiny.rows(9)])
    assert 'put the system text into the first user message' in str(d.train.findings['refused'])

def test_no_answer_is_trained_with_the_text_of_another_message():
    "A template that takes the ends of texts away leaves nothing by which an answer is found"
    tok = tiny.tokenizer("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content[:5] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
    tok.add_special_tokens(dict(additional_special_tokens=['<|im_start|>', '<|im_end|>']))
    e = Encoder(tok, choose_template(tok)).all([said(('user', 'yes'), ('assistant', 'yes'))])[0]
    assert learned(tok, e) in ('', 'yes<|im_end|>') and (learned(tok, e) or 'lost' in e['found'])

def test_a_template_that_repeats_the_texts_at_the_end_is_named():
    tok = tiny.tokenizer("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}"
        "SUMMARY {{ messages|map(attribute='content')|join(' / ') }}{% endif %}")
    tok.add_special_tokens(dict(additional_special_tokens=['<|im_start|>', '<|im_end|>']))
    e = Encoder(tok, choose_template(tok)).all([said(('user', 'who'), ('assistant', 'yes'))])[0]
    assert 'who' not in learned(tok, e) and 'yes' in learned(tok, e)

@pytest.mark.parametrize('most,empty', [(.29, 29), (.57, 57), (.58, 58)])
def test_the_share_that_is_advised_is_enough(most, empty):
    rows = [dict(prompt=f'q{i}', completion='' if i<empty else f'a{i}') for i in range(100)]
    assert len(ready(tokenizer('chatml'), rows, max_lost=most).train)==100-empty
    with pytest.raises(QLoRAError, match=f'set data.max_lost to {most}'): ready(tokenizer('chatml'), rows, max_lost=most-.01)

@pytest.mark.parametrize('spec,say', [('Cost {price:.2f}', ':.2f is not applied'), ('{name!r}', '!r is not applied'), ('{name:d}', ':d is not applied')])
def test_a_format_that_no_text_takes_is_refused(spec, say):
    with pytest.raises(QLoRAError, match=say): ready(tokenizer('chatml'), [dict(name='n', price=1.5, a='b')]*3, prompt=spec, completion='a')

@pytest.mark.parametrize('kind', ['plain', 'thinking', 'call'])
@pytest.mark.parametrize('system', ['first', 'middle', 'none'])
@pytest.mark.parametrize('name', SHAPES)
def test_what_is_asked_is_the_beginning_of_what_is_trained(name, system, kind):
    coder = encoder(name)
    for turns in (1, 3):
        ms = conversation(turns, system, kind)
        e = coder.all([ms])[0]
        if isinstance(e, str) or e['found'].keys() & {'lost', 'untrained'}: continue
        asked = coder.template.prompt(coder.tok, ms[:-1])
        ids = e['input_ids']
        k = max(i for i in range(1, len(ids)) if e['labels'][i]!=-100 and e['labels'][i-1]==-100)
        assert text(coder.tok, ids[:k])==asked

def test_a_system_text_that_training_drops_is_in_no_prompt():
    tok = tiny.tokenizer("{{ bos_token }}{% set sys=messages[0].content if messages[0].role=='system' else '' %}{% for m in messages if m.role!='system' %}"
        "{% if m.role=='user' %}[INST] {{ sys+' ' if loop.last else '' }}{{ m.content }}[/INST]{% else %} {{ m.content+eos_token }}{% endif %}{% endfor %}")
    d = ready(tok, [dict(prompt='Hi', completion='Yo')], system='Rule')
    assert d.train.findings['no_system'].rows==1 and text(tok, d.train.dataset[0]['input_ids'])=='<s>[INST] Hi[/INST] Yo</s>'
    assert d.template.prompt(tok, d.prompts.messages('Hi'))=='<s>[INST] Hi[/INST]'

@pytest.mark.parametrize('turns', [10, 80, 330])
@pytest.mark.parametrize('name', ['chatml', 'llama-3', 'qwen3'])
def test_a_long_chat_is_rendered_a_few_times_and_not_once_a_turn(name, turns, monkeypatch):
    from qlora_nb.tokens.templates import Template
    rendered,original = [],Template.text
    def counted(self, *args, **kw):
        rendered.append(original(self, *args, **kw))
        return rendered[-1]
    monkeypatch.setattr(Template, 'text', counted)
    tok = tokenizer(name)
    e = encode(tok, choose_template(tok), said(*[o for i in range(turns) for o in (('user', 'word '*60), ('assistant', f'answer {i}'))]))
    assert sum(map(len, rendered))<=3.5*len(rendered[0]) and all(f'answer {i}' in learned(tok, e) for i in (0, turns-1))

def test_two_questions_in_a_row_are_refused_with_the_way_out():
    talk = said(('user', 'a'), ('user', 'b'), ('assistant', 'c'))
    d = ready(tokenizer('gemma'), [dict(messages=talk), *tiny.rows(9)])
    assert f'{ALTERNATE}. join turns of one role that follow each other, or choose another data.chat_template' in str(d.train.findings['refused'])
