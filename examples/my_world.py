"""Roman numerals: add two numbers and write the sum as the Romans did. A whole world in one file.

agartha eval MODEL examples/my_world.py
agartha rl model=MODEL world=examples/my_world.py
"""

import random

levels = (10, 100, 1000)  # the largest number in a sum, easiest first

VALUES = 1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1
SIGNS = ["M", "CM", "D", "CD", "C", "XC", "L", "XL", "X", "IX", "V", "IV", "I"]


def roman(number):
    text = ""
    for value, sign in zip(VALUES, SIGNS):
        text, number = text + sign * (number // value), number % value
    return text


def task(seed, level):
    rng = random.Random(seed)  # a private generator: the same seed gives the same task
    a, b = rng.randint(1, level), rng.randint(1, level)
    return f"What is {roman(a)} + {roman(b)}? End with: answer: NUMERAL", {"sum": roman(a + b)}


def verify(data, completion):
    words = completion.strip().split("answer:")
    return 1.0 if len(words) == 2 and words[1].strip() == data["sum"] else 0.0


def oracle(data):
    return f"answer: {data['sum']}"
