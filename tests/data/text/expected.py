"""Writes expected.json: what the reference (transformers, tokenizers, Jinja2) makes of texts and conversations.

    pip install transformers tokenizers jinja2 && python tests/data/text/expected.py

The tests compare our tokenizer and templates with it. Recorded with transformers 5.23.0, tokenizers 0.23.3, Jinja2 3.1.6.
"""
import json
import random
from pathlib import Path

from transformers import PreTrainedTokenizerFast

here = Path(__file__).parent
config = json.loads((here / "tokenizer_config.json").read_text())
tokenizer = PreTrainedTokenizerFast(
    tokenizer_file=str(here / "tokenizer.json"),
    chat_template=config["chat_template"],
    **{k: config[k] for k in ("bos_token", "eos_token", "pad_token")},
)

rng = random.Random(0)
letters = "aeiou thrsn  \n\t.,!?'0123456789<>|_-/\\\"äß京🙂\u200d\u00a0\u2028ſİ\r\x00"
texts = [
    "", " ", "\n\n", "Red leads to Blue. Start at Red and take 1 step. Where are you?",
    "What's 12345 + 67? I'LL say it's 12412!", "naïve café 北京 🙂🙂🏽 \u200d e\u0301", "def f(x):\n\treturn  x\r\n",
    "a < b and c > d | e", "<", "|", "end_turn", "< |end_turn|>", "\ufdd0\uffff\ue000 noncharacters", "  trimmed  \n",
]
texts += ["".join(rng.choice(letters) for _ in range(rng.randrange(1, 60))) for _ in range(60)]
plain = [{"text": t, "ids": tokenizer.encode(t, add_special_tokens=False)} for t in texts]
marked = "<|begin_text|><|begin_header|>user<|end_header|>\n\nhi <|end_turn|> <|end_turn"
trusted = [{"text": t, "ids": tokenizer.encode(t, add_special_tokens=False)} for t in [marked, marked * 3, "<|pad|>"]]

# Uses what published templates use: namespaces, loop controls, string methods, tojson, slices, macros, tests.
kitchen = """{%- macro head(role) -%}
<|begin_header|>{{ role | upper if role == 'system' else role }}<|end_header|>
{%- endmacro %}
{% set ns = namespace(system='', count=0) %}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {%- set ns.system = message['content'].strip() %}
        {%- continue %}
    {%- endif %}
    {%- set ns.count = ns.count + 1 %}
{%- endfor %}
{{- bos_token }}
{%- if ns.system %}{{ head('system') }} {{ ns.system }}<|end_turn|>
{% endif %}
{% for message in messages if message.role != 'system' %}
    {% if loop.first and message.role != 'user' %}
        {{ raise_exception('Conversations start with the user') }}
    {% endif %}
    {% set content = message.content %}
    {% if message.role == 'assistant' and '</think>' in content %}
        {% set content = content.split('</think>')[-1].lstrip('\\n') %}
    {% endif %}
    {% generation %}
{{ head(message.role) }}{{ content | trim }}<|end_turn|>
    {% endgeneration %}
    {%- if loop.last %} {{ loop.index }}/{{ ns.count }} {{ messages[0:1] | length }} {{ none }} {{ true }} {{ tools is defined }}{% endif %}

{% endfor %}
{{ {'a': 1, 'b': ['x', none, true], 'c': "é<&>'"} | tojson }}
{{ {'a': [1]} | tojson(indent=2) }}
{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}
{% if add_generation_prompt %}{{ head('assistant') }}{% endif %}
"""

def conversation(*contents, system=None):
    roles = ["user", "assistant"]
    turns = [{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)]
    return ([{"role": "system", "content": system}] if system is not None else []) + turns

conversations = [conversation(t) for t in texts]
conversations += [
    conversation("Hello", "Hi there.", "And 2 + 2?"),
    conversation("Hello", "<think>\nhm\n</think>\n\n Four. ", "Sure?", system="  You are Huginn. "),
    conversation("", "", ""),
    conversation("<", ">", "|", system=""),
    conversation("end", "_turn", "pad", system="begin"),
]
chats = []
for name, source in [("own", config["chat_template"]), ("kitchen", kitchen)]:
    for i, messages in enumerate(conversations):
        for extra in [{}, {"enable_thinking": False}] if i == 3 else [{}]:
            for generate in [True, False] if i % 8 == 3 else [True]:
                kwargs = dict(chat_template=source, add_generation_prompt=generate, **extra)
                chats.append({
                    "template": name, "messages": messages, "generate": generate, "extra": extra,
                    "text": tokenizer.apply_chat_template(messages, tokenize=False, **kwargs),
                    "ids": tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **kwargs),
                })

out = {"plain": plain, "trusted": trusted, "kitchen": kitchen, "chats": chats}
(here / "expected.json").write_text(json.dumps(out, ensure_ascii=True, separators=(",", ":")) + "\n")
