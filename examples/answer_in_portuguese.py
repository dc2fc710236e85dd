"""Teach SmolLM2 to answer in Portuguese, and ask questions that it was not taught.

    python examples/answer_in_portuguese.py OUT            # minutes on two idle cores
    python examples/answer_in_portuguese.py OUT --short    # two steps, to see that everything runs

A language is judged by its commonest words (`vitral.tune.data.language`); whether an answer is true is not.
"""

from __future__ import annotations

import json

from arguments import arguments

import vitral
from vitral.tune.after import export_run
from vitral.tune.data.language import language_of
from vitral.tune.recipe import parse_recipe
from vitral.tune.run import run_recipe

# Half of the questions are English: the language of the answer is what is taught, not that of the question.
TAUGHT = (
    ("O que é uma ilha?", "Uma ilha é uma porção de terra que tem água por todos os lados."),
    ("What is a bridge?", "Uma ponte é uma obra que liga as duas margens de um rio ou de um vale."),
    ("Para que serve um farol?", "Um farol serve para mostrar aos navios onde fica a costa durante a noite."),
    ("What do bees make?", "As abelhas fazem o mel com o néctar que recolhem das flores."),
    ("Como se faz o pão?", "O pão se faz com farinha, água, sal e fermento, e depois se assa no forno."),
    ("Why does it rain?", "Chove porque o vapor de água das nuvens esfria e cai em gotas sobre a terra."),
    ("O que é um dicionário?", "Um dicionário é um livro que explica o significado das palavras de uma língua."),
    ("What is a library?", "Uma biblioteca é um lugar em que as pessoas leem e tomam livros emprestados."),
    ("Quantos dias tem uma semana?", "Uma semana tem sete dias, da segunda-feira ao domingo."),
    ("What is ice?", "O gelo é a água em estado sólido, que se forma quando o frio é intenso."),
    ("O que faz um padeiro?", "Um padeiro faz o pão, os bolos e os doces que as pessoas compram de manhã."),
    ("What is a forest?", "Uma floresta é uma grande área de terra com muitas árvores e muitos animais."),
    ("Por que dormimos?", "Dormimos para que o corpo e a mente descansem do trabalho do dia."),
    ("What is a clock for?", "Um relógio serve para medir o tempo e para dizer as horas do dia."),
    ("O que é um vulcão?", "Um vulcão é uma abertura na terra por onde saem a lava, as cinzas e os gases."),
    ("What do teachers do?", "Os professores ensinam os alunos e os ajudam a entender o que não sabem."),
)
ASKED = (
    "O que é um rio?", "What is a mountain?", "Para que serve uma chave?", "What does a doctor do?",
    "O que é uma cidade?", "What is the sea?", "Por que usamos roupas?", "What is a garden?",
)  # fmt: skip


def in_portuguese(model_path: str, questions: tuple[str, ...]) -> int:
    """How many of the questions are answered in Portuguese."""
    with vitral.load(model_path, context_length=512) as model:
        answers = [
            model.generate(messages=[{"role": "user", "content": question}], max_tokens=32).text
            for question in questions
        ]
    return sum(language_of(answer) == "Portuguese" for answer in answers)


def main() -> None:
    options = arguments(__doc__).parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    train = options.out / "train.jsonl"
    lines = [json.dumps({"prompt": q, "completion": a}, ensure_ascii=False) for q, a in TAUGHT]
    train.write_text("\n".join(lines) + "\n", "utf-8")
    recipe = parse_recipe({
        "model": {"base": options.base},
        "data": {"train": [str(train)], "hold_out": 0.12, "context": 256, "licence": "CC0-1.0"},
        "run": {"steps": 2 if options.short else 20, "batch": 2 if options.short else 7, "learning_rate": 1e-3,
                "evaluate_every": 2 if options.short else 20, "measure_forgetting": not options.short},
    })  # fmt: skip
    result = run_recipe(recipe, options.out / "run", on_event=print)
    exported = export_run(options.out / "run", options.out / "fala.gguf", "gguf", "Q8_0")
    asked = ASKED[: 1 if options.short else None]
    print(json.dumps({
        "questions": len(asked),
        "answered in Portuguese before": in_portuguese(options.base, asked),
        "answered in Portuguese after": in_portuguese(str(exported.path), asked),
        "test loss": [result.before.test_loss, result.after.test_loss],
        "forgetting, before and after": [result.before.forgetting, result.after.forgetting],
        "share kept by Q8_0": exported.kept.share,
    }, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
