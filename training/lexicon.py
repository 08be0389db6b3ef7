"""The closed world of the packaged model: names of things in English and Chinese, and the words it reads and hears."""

from __future__ import annotations

# ruff: noqa: SIM905 - long lists of words read better as text
from dataclasses import dataclass

LANGUAGES = ("en", "zh")


@dataclass(frozen=True, slots=True)
class Name:
    en: str
    zh: str

    def __getitem__(self, language: str) -> str:
        return self.en if language == "en" else self.zh


SHAPES: tuple[Name, ...] = (
    Name("circle", "圆形"),
    Name("square", "正方形"),
    Name("triangle", "三角形"),
    Name("star", "星形"),
    Name("hexagon", "六边形"),
    Name("cross", "十字形"),
    Name("heart", "心形"),
    Name("diamond", "菱形"),
    Name("ring", "圆环"),
    Name("moon", "月牙"),
    Name("rectangle", "长方形"),
)

COLOURS: tuple[Name, ...] = (
    Name("red", "红色"),
    Name("green", "绿色"),
    Name("blue", "蓝色"),
    Name("yellow", "黄色"),
    Name("orange", "橙色"),
    Name("purple", "紫色"),
    Name("pink", "粉色"),
    Name("brown", "棕色"),
    Name("black", "黑色"),
    Name("white", "白色"),
    Name("gray", "灰色"),
    Name("cyan", "青色"),
)

# Several anchors per colour, as drawing programs and style sheets mean the name; drawn with a small jitter.
ANCHORS: tuple[tuple[tuple[int, int, int], ...], ...] = (
    ((230, 25, 25), (255, 0, 0), (205, 20, 35), (220, 50, 47)),
    ((20, 150, 40), (0, 128, 0), (0, 190, 0), (50, 205, 50), (34, 139, 34)),
    ((25, 60, 220), (0, 0, 255), (30, 80, 200), (65, 105, 225)),
    ((250, 220, 20), (255, 255, 0), (245, 210, 40), (255, 225, 25)),
    ((250, 130, 15), (255, 140, 0), (255, 165, 0), (245, 130, 48)),
    ((130, 30, 160), (128, 0, 128), (145, 40, 190), (148, 0, 211)),
    ((250, 130, 180), (255, 192, 203), (255, 105, 180), (255, 150, 190)),
    ((130, 75, 35), (139, 69, 19), (120, 70, 20), (150, 85, 45)),
    ((10, 10, 10), (0, 0, 0), (25, 25, 28), (35, 35, 35)),
    ((250, 250, 250), (255, 255, 255), (242, 242, 242), (248, 248, 250)),
    ((128, 128, 128), (140, 140, 140), (150, 150, 152), (115, 115, 118)),
    ((0, 200, 210), (0, 255, 255), (40, 205, 220), (0, 220, 230)),
)

LETTERS_UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LETTERS_LOWER = LETTERS_UPPER.lower()
DIGITS = "0123456789"
GLYPHS = LETTERS_UPPER + LETTERS_LOWER + DIGITS + "-!?.:%$+"
# Letters and digits that no font mixes up when they stand alone.
CLEAR = "ABCDEFGHJKLMNPQRTUVWXYZ234679"

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS_ZH = "零一二三四五六七八九十"

READ_WORDS: tuple[str, ...] = tuple(
    """able about above acid actor after again agent air alarm album alert alone amber angle ankle apple april arena
    arm army art atlas aunt autumn award baby back badge bag bake ball bank barn base basket bath beach bean bear
    bed bell bench bird black blade block blue board boat body bolt bone book boot bottle box brain branch bread
    brick bridge bright brown brush bucket bus butter button cabin cable cafe cake camel camera camp candle candy
    canyon car card castle cat cave chair chalk check cheese cherry chess child city clay clean clear cliff clock
    closed cloud clown club coach coast coat cocoa code coffee coin cold comet copper coral corn cotton cow crab
    crane cream crown cup curve cycle daily dance danger dark data date dawn day deep deer delta desert desk dial
    diet dinner dish dog doll door down draft dragon dream dress drink drive drum duck dust eagle early earth east
    echo edge egg eight elbow empty engine enter equal exit extra eye face fact fall family farm fast father fence
    field film final fire first fish five flag flame flat floor flower flute fog food foot forest fork four fox
    free fresh friend frog fruit fuel full game garden gas gate gift girl glass globe glove goal goat gold good
    grape grass great green grid group guest guide guitar hall hammer hand happy harbor hat hawk heart heat heavy
    hello help hero high hill hobby home honey hook hope horse hotel hour house human ice idea inch ink iron island
    jacket jam jazz jeans jelly jet jewel job joke jump june jungle juice kettle key kick king kite kitten knee
    knife lady lake lamp land large laser laugh lawn leaf lemon letter level library light lime line lion list
    little live lock long loop lucky lunch magic mail main map maple march mark market mask match meal melon metal
    milk mill mind mint mirror model money monkey moon morning mother motor mouse movie music nail name navy neck
    needle nest new news nice night nine noise noon north nose note novel number nurse oak ocean office oil old
    olive onion open orange orbit oven over owl page paint panda paper park party pasta path peace peach pear pen
    pencil pepper phone photo piano pie pig pilot pine pink pizza place plan plane plant plate play plum pocket
    point police pond pony pool port post potato power press prize proud pump puppy purple queen quick quiet quiz
    rabbit race radio rail rain ranch rapid ready red rice ride right ring river road robot rocket roof room rope
    rose round royal ruby sad safe sail salad sale salt sand sauce school sea seat seed seven shark sheep shelf
    ship shirt shoe shop short shower sign silk silver sing six skirt sky sleep slow small smart smile smoke snake
    snow soap soccer sock sofa soft song soup south space spice spoon sport spring square stage stamp star start
    station steel stick stone stop store storm story stove straw street strong sugar summer sun super sweet swim
    table tall tank tape taxi tea team tent test three ticket tiger time toast today tomato tool tower town toy
    track train tree truck tulip turn turtle twelve two uncle under up urban valley van velvet video view village
    violin visit voice wagon walk wall warm wash watch water wave welcome west whale wheat wheel white wide wild
    wind window wine wing winter wolf wood wool word work world yard year yellow yes young zebra zero zone""".split()
)
