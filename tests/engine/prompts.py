"""The prompts of the equality test, fixed before its first run: texts cut to exact lengths."""

TEXTS = (
    "The capital of France is Paris, and the capital of Italy is Rome. In the north of Europe, "
    "the capital of Norway is Oslo, and that of Finland is Helsinki. A traveller who starts in "
    "Lisbon and goes east by train will pass through Madrid, then Barcelona, then Lyon, and can "
    "be in Geneva on the second evening, if no train is late. From there the line climbs into the "
    "mountains, and the windows fill with snow. Most people sleep through the best part of it.",
    "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n"
    "    return a\n\n\ndef factorial(n):\n    result = 1\n    for i in range(2, n + 1):\n"
    "        result *= i\n    return result\n\n\ndef is_prime(n):\n    if n < 2:\n"
    "        return False\n    for i in range(2, int(n ** 0.5) + 1):\n        if n % i == 0:\n"
    "            return False\n    return True\n\n\nprint([is_prime(n) for n in range(20)])\n",
    "Q: A farmer has 17 sheep and buys 8 more. He then sells 5 of them. How many sheep does he "
    "have now?\nA: He starts with 17 sheep. After buying 8 he has 25. After selling 5 he has 20. "
    "The answer is 20.\n\nQ: A shop sells pens at 3 for 2 euros. How much do 12 pens cost?\nA: "
    "Twelve pens are four groups of three pens. Each group costs 2 euros. The answer is 8.\n\n"
    "Q: A train needs 3 hours for 240 kilometres. How far does it go in 5 hours at that speed?\n",
    "Photosynthesis is the process by which green plants turn light into chemical energy. Water "
    "is taken up by the roots, carbon dioxide enters through small openings in the leaves, and "
    "the chlorophyll in the cells catches the light. The sugar that is made feeds the plant, and "
    "the oxygen that is left over goes into the air. At night the plant breathes like an animal, "
    "and uses part of the sugar. Over a whole year, a forest stores more carbon than it gives.",
)

LENGTHS = (1, 2, 7, 17, 31, 33, 50, 63, 64, 65, 80, 100, 120, 126, 127, 128)
"""Tokens of each prompt: the i-th is cut from the texts in order, from text i modulo 4 on."""


def prompts(tokenizer) -> list[list[int]]:
    """Token ids of the prompts, each of exactly its length."""
    return [
        tokenizer.encode(" ".join(TEXTS[index % 4 :] + TEXTS[: index % 4]))[:length]
        for index, length in enumerate(LENGTHS)
    ]
