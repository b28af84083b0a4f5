"A real Llama, small enough for a test: two layers, hidden size 128, a word-level tokenizer without a chat template"
from types import SimpleNamespace as S

def tokenizer(chat_template=None):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    chars = [chr(i) for i in range(32, 127)]
    t = Tokenizer(models.BPE({c: i for i,c in enumerate(['<unk>', '<s>', '</s>', '\n', *chars])}, [], unk_token='<unk>'))
    t.pre_tokenizer,t.decoder = pre_tokenizers.Split('', 'isolated'),decoders.Fuse()
    tok = PreTrainedTokenizerFast(tokenizer_object=t, unk_token='<unk>', bos_token='<s>', eos_token='</s>')
    tok.chat_template = chat_template
    return tok

def model_folder(folder, hidden=128, layers=2, seed=0):
    "Save a randomly initialised Llama and its tokenizer; hidden sizes are multiples of 64, as 4-bit layers on a CPU need"
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(seed)
    c = LlamaConfig(vocab_size=128, hidden_size=hidden, intermediate_size=2*hidden, num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=2,
        max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=None)
    LlamaForCausalLM(c).to(torch.bfloat16).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)

def rows(n=16, first=0):
    "Rows with a pattern to learn; no row of one number is a row of another"
    animals,places = ['cat', 'dog', 'bird'],['mat', 'road', 'roof']
    return [dict(prompt=f'who is on the {places[i%3]} {i}', completion=f'the {animals[i%3]}') for i in range(first, first+n)]

def at_step(n, act):
    "Call `act` once, in the worker, when step `n` was reached"
    seen = []
    def watch(run):
        if run.step>=n and not seen and not run.ended:
            seen.append(1)
            act(run)
    return watch

def ended(**parts):
    "A run that is over, made of its parts alone"
    from qlora_nb.training.run import Run
    class Ended(Run): running = False
    run = Ended.__new__(Ended)
    vars(run).update(parts)
    return run

def cpu(): return S(kind='cpu', name='CPU', capability=None, bf16=True, count=1, memory=None)
