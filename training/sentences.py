"""Sentences to speak: a small grammar over about 300 English words, and one over common Chinese words."""

from __future__ import annotations

# ruff: noqa: SIM905 - long lists of words read better as text
from random import Random

from training.lexicon import COLOURS, DIGIT_WORDS, DIGITS_ZH, SHAPES

NOUNS = """apple ball bed bird boat book bottle box bread bridge bus cake camera car cat chair child city clock coat cup
dog door dress farm fire fish flower garden girl glass guitar hat horse house key kitchen knife lake lamp letter lion
map market monkey moon mountain mouse orange paper park pen phone piano picture pig plane plate queen rabbit river road
robot rose school sea sheep ship shirt shoe shop spoon star station street sun table tiger tower train tree truck
village wall watch window""".split()
PEOPLE = (
    "mother father sister brother teacher doctor farmer friend uncle aunt baby boy girl man woman king driver".split()
)
NAMES = "Anna Ben Carol David Emma Frank Grace Henry Lucy Mary Peter Sarah Thomas".split()
ADJECTIVES = """big small old new young happy sad hot cold clean dirty fast slow tall short heavy light long round quiet
loud beautiful strong soft""".split()
DOES = """opens closes finds sees likes wants buys brings carries cleans draws holds needs paints reads sells takes
washes""".split()
DO = "open close find see buy bring carry clean draw hold paint read sell take wash show give".split()
ACTS = "sing dance run swim sleep walk work play jump cook study travel wait eat drink laugh".split()
PLACES = """kitchen garden park school station market city village farm house street forest office library hotel
museum""".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
TIMES = "morning evening afternoon night summer winter spring autumn".split()
FOODS = "bread rice soup cheese coffee tea milk water fruit salad chicken pizza sugar butter honey chocolate".split()
WEATHER = "sunny rainy cloudy windy snowy warm cold hot".split()
PREPOSITIONS = ("on", "under", "behind", "near", "in front of", "next to")
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()

_FORMS = (
    "the {adj} {noun} is {prep} the {noun}",
    "the {person} {does} the {adj} {noun}",
    "please {do} the {noun}",
    "please {do} the {colour} {noun}",
    "can you {do} the {noun}",
    "{name} {does} a {noun} every {time}",
    "my {person} likes {food} and {food}",
    "i want to {act} in the {place}",
    "we will {act} on {day}",
    "it is {weather} in the {time}",
    "it is very {weather} today",
    "there are {count} {noun}s in the {place}",
    "{name} has {count} {colour} {noun}s",
    "where is the {adj} {noun}",
    "the {colour} {shape} is {adj}",
    "i see a {colour} {shape}",
    "do not {act} in the {place}",
    "they {act} in the {place} at {time}",
    "she drinks {food} in the {time}",
    "he eats {food} with his {person}",
    "the {noun} and the {noun} are {adj}",
    "come to the {place} at {count} o'clock",
    "the train goes to the {place} on {day}",
    "good {time} {name}",
    "hello {name} how are you",
    "my name is {name}",
    "how many {noun}s do you see",
    "{name} and {name} {act} together",
    "we will {act} tomorrow",
    "today i want to {act}",
    "this is my {adj} {noun}",
    "that is not a {noun}",
    "the {person} is {adj} and {adj}",
    "i like the {colour} {noun}",
    "turn {side} at the {place}",
    "the {noun} is {colour}",
    "a {adj} {noun}",
    "{adj} {noun}",
    "{noun}",
    "{colour}",
    "{colour} {noun}",
    "yes please",
    "no thank you",
    "thank you very much",
    "one more {noun} please",
    "look at the {noun}",
    "{do} it now",
)


def english(random: Random) -> str:
    """Lower case but for names, no punctuation but apostrophes; 1 to 10 words."""
    sentence = random.choice(_FORMS)
    filling = {
        "adj": ADJECTIVES, "noun": NOUNS, "prep": PREPOSITIONS, "person": PEOPLE, "does": DOES, "do": DO,
        "colour": [c.en for c in COLOURS], "name": NAMES, "time": TIMES, "food": FOODS, "act": ACTS, "place": PLACES,
        "day": DAYS, "weather": WEATHER, "count": DIGIT_WORDS[2:], "shape": [s.en for s in SHAPES],
        "side": ("left", "right"),
    }  # fmt: skip
    for slot, words in filling.items():
        while f"{{{slot}}}" in sentence:
            sentence = sentence.replace(f"{{{slot}}}", random.choice(words), 1)
    for word in ("sheep", "fish", "bus", "glass", "dress", "box", "watch"):
        plural = {"sheep": "sheep", "fish": "fish"}.get(word, word + "es")
        sentence = sentence.replace(word + "s ", plural + " ") if not sentence.endswith(word + "s") else sentence
    for vowel in "aeiou":
        sentence = sentence.replace(f" a {vowel}", f" an {vowel}")
        if sentence.startswith(f"a {vowel}"):
            sentence = "an" + sentence[1:]
    return sentence


def written(sentence: str) -> str:
    """As the model answers: a capital, ' i ' as 'I', a full stop."""
    words = ["I" if word == "i" else word for word in sentence.split(" ")]
    text = " ".join(words)
    return text[0].upper() + text[1:] + "."


def number(random: Random) -> tuple[str, str]:
    """Words and digits: 'forty two', '42'. Sometimes digits one by one, like a telephone number."""
    if random.random() < 0.4:
        digits = [random.randrange(10) for _ in range(random.randint(2, 6))]
        return " ".join(DIGIT_WORDS[d] for d in digits), "".join(map(str, digits))
    value = random.randint(0, 99) if random.random() < 0.7 else random.randint(100, 999)
    return number_words(value), str(value)


def number_words(value: int) -> str:
    if value < 10:
        return DIGIT_WORDS[value]
    if value < 20:
        return TEENS[value - 10]
    if value < 100:
        tens, ones = divmod(value, 10)
        return TENS[tens - 2] + (f" {DIGIT_WORDS[ones]}" if ones else "")
    hundreds, rest = divmod(value, 100)
    return DIGIT_WORDS[hundreds] + " hundred" + (f" and {number_words(rest)}" if rest else "")


ZH_WORDS = {
    "人": "我 你 他 妈妈 爸爸 老师 朋友 哥哥 姐姐 医生 孩子".split(),
    "动": "喜欢 看见 想要 有 买了 画了 需要 找到".split(),
    "物": "苹果 书 汽车 小狗 小猫 花 房子 桌子 椅子 手机 杯子 衣服 飞机 火车 自行车 雨伞 钥匙 电脑 帽子 鱼".split(),
    "色": [c.zh for c in COLOURS],
    "地": "学校 公园 家里 商店 医院 北京 上海 图书馆 车站 厨房".split(),
    "时": "今天 明天 昨天 早上 晚上 下午 星期一 星期天".split(),
    "做": "吃饭 睡觉 跑步 唱歌 跳舞 学习 工作 喝水 游泳 看书".split(),
    "天": "很热 很冷 下雨 下雪 晴天 刮风".split(),
    "形": "很大 很小 很漂亮 很新 很旧 很高".split(),
    "数": [f"{d}个" for d in "一两三四五六七八九十"],
    "图": [s.zh for s in SHAPES],
}
ZH_FORMS = (
    "人动一个物", "人动色的物", "人在地做", "时人去地", "时天", "物在地", "这个物形", "那里有数物", "请给人一个物",
    "人的物是色的", "人时在地做", "你好", "谢谢你", "再见", "人不动物", "色的图", "物", "人和人一起做", "地的物形",
    "请打开门",
)  # fmt: skip


def chinese(random: Random) -> str:
    form = random.choice(ZH_FORMS)
    return "".join(random.choice(ZH_WORDS[c]) if c in ZH_WORDS else c for c in form)


def chinese_number(random: Random) -> tuple[str, str]:
    digits = [random.randrange(10) for _ in range(random.randint(1, 5))]
    return "".join(DIGITS_ZH[d] for d in digits), "".join(map(str, digits))
