"""Paraphrases of every question, by task and language. Braces are filled by the module that asks."""

from __future__ import annotations

ASK: dict[str, dict[str, tuple[str, ...]]] = {}


def _add(task: str, en: str, zh: str) -> None:
    ASK[task] = {
        "en": tuple(line.strip() for line in en.strip().splitlines()),
        "zh": tuple(line.strip() for line in zh.strip().splitlines()),
    }


_add(
    "colour",
    """What colour is the {a}?
    What color is the {a}?
    Which colour is the {a}?
    What is the color of the {a}?
    Tell me the colour of the {a}.
    The {a} has which color?
    Name the color of the {a}.
    In the picture, what color is the {a}?
    Can you tell what colour the {a} is?
    What color does the {a} have?
    Look at the {a}. What color is it?
    Colour of the {a}?""",
    """{a}是什么颜色？
    {a}是什么颜色的？
    图中的{a}是什么颜色？
    请问{a}的颜色是什么？
    {a}的颜色？
    告诉我{a}的颜色。
    图片里的{a}是哪种颜色？
    看一下{a}，它是什么颜色？
    {a}是哪种颜色的？
    请说出{a}的颜色。""",
)
_add(
    "shape",
    """What shape is {a}?
    Which shape is {a}?
    What is the shape of the {c} object?
    What is the {c} object?
    What is {c} in the picture?
    Which object is {c}?
    Name the {c} shape.
    What is the {c} thing?
    Tell me the shape of the {c} object.
    What kind of shape is the {c} one?
    What shape is the {c} object?""",
    """{c}的物体是什么形状？
    {c}的图形是什么？
    什么东西是{c}的？
    图中{c}的是什么形状？
    请问{c}的物体是什么？
    哪个图形是{c}的？
    {c}的是什么？
    告诉我{c}物体的形状。
    图里{c}的图形是什么形状？
    说出{c}图形的名称。""",
)
_add(
    "describe",
    """What is in the picture?
    What do you see?
    Describe the picture.
    What does the image show?
    Describe this image.
    What is in this image?
    What can you see in the picture?
    Tell me what is in the image.
    What is shown here?
    List the objects from left to right.
    Which objects are in the picture?
    What is it?""",
    """图里有什么？
    你看到了什么？
    描述一下这张图片。
    图片里有什么？
    请描述这张图。
    这张图片显示了什么？
    图中有哪些物体？
    说说图中有什么。
    从左到右列出物体。
    这是什么？
    画面里有什么？""",
)
_add(
    "count",
    """How many {a} are there?
    How many {a} are in the picture?
    Count the {a}.
    What is the number of {a}?
    How many {a} do you see?
    How many {a} can you count?
    Tell me how many {a} there are.
    How many {a} does the image show?
    Number of {a}?
    In this picture, how many {a} are there?""",
    """有几个{a}？
    图中有多少个{a}？
    数一数{a}有几个。
    图里有几个{a}？
    一共有多少个{a}？
    {a}的数量是多少？
    你看到几个{a}？
    请数一下{a}。
    图片里有多少个{a}？
    {a}有几个？""",
)
_add(
    "exists",
    """Is there a {a}?
    Is there a {a} in the picture?
    Do you see a {a}?
    Can you see a {a}?
    Does the picture have a {a}?
    Does the image show a {a}?
    Is a {a} in the image?
    Is there any {a} here?
    Are there any {b}?
    Can you find a {a}?""",
    """有{a}吗？
    图中有{a}吗？
    图片里有没有{a}？
    你看到{a}了吗？
    图里有{a}吗？
    这张图里有没有{a}？
    能看到{a}吗？
    画面里有{a}吗？
    是否有{a}？
    里面有{a}吗？""",
)
_add(
    "where",
    """Where is the {a} relative to the {b}?
    On which side of the {b} is the {a}?
    Is the {a} left of, right of, above or below the {b}?
    Relative to the {b}, where is the {a}?
    Where is the {a} compared to the {b}?
    Compared with the {b}, where is the {a}?
    Where can I find the {a}, seen from the {b}?
    In which direction from the {b} is the {a}?
    Where is the {a} with respect to the {b}?
    The {a} is where relative to the {b}?""",
    """{a}在{b}的哪边？
    {a}在{b}的什么方向？
    相对于{b}，{a}在哪里？
    {a}位于{b}的哪一侧？
    {a}在{b}的左边、右边、上面还是下面？
    从{b}看，{a}在哪边？
    请问{a}在{b}的哪个方向？
    {a}相对{b}的位置是什么？
    {a}在{b}的哪个方位？
    以{b}为参照，{a}在哪里？""",
)
_add(
    "relation",
    """Is the {a} {r} the {b}?
    Is the {a} {r} the {b} in the picture?
    Tell me, is the {a} {r} the {b}?
    Do you see the {a} {r} the {b}?
    True or not: the {a} is {r} the {b}?
    Would you say the {a} is {r} the {b}?
    Can you see that the {a} is {r} the {b}?
    Is it right that the {a} is {r} the {b}?
    In this image, is the {a} {r} the {b}?
    Yes or no: is the {a} {r} the {b}?""",
    """{a}在{b}的{r}吗？
    {a}是在{b}的{r}吗？
    {a}是不是在{b}的{r}？
    图中{a}在{b}的{r}吗？
    请问{a}在{b}{r}吗？
    {a}位于{b}的{r}吗？
    {a}在{b}{r}，对吗？
    是否{a}在{b}的{r}？
    看图，{a}在{b}的{r}吗？
    判断：{a}在{b}的{r}吗？""",
)
_add(
    "place",
    """Where is the {a}?
    Where is the {a} in the picture?
    In which part of the picture is the {a}?
    What is the position of the {a}?
    Tell me where the {a} is.
    Where in the image is the {a}?
    Which part of the image has the {a}?
    Where can I find the {a}?
    Where do you see the {a}?
    The {a} is in which part of the picture?""",
    """{a}在哪里？
    {a}在图片的什么位置？
    {a}在图中哪个位置？
    告诉我{a}在哪儿。
    {a}的位置在哪里？
    {a}位于图片的哪个部分？
    在图片的哪里能看到{a}？
    请问{a}在哪个位置？
    {a}处于图中什么位置？
    {a}在画面的哪里？""",
)
_add(
    "extreme",
    """Which object is the {e}?
    What is the {e} object?
    Which is the {e} shape?
    Name the {e} object.
    What is the {e} thing in the picture?
    Tell me which object is the {e}.
    The {e} object is what?
    Which shape is the {e} one?
    Find the {e} object. What is it?
    What is the {e} one?""",
    """{e}的物体是什么？
    哪个物体是{e}的？
    {e}的是哪个图形？
    图中{e}的是什么？
    说出{e}的物体。
    {e}的图形是哪个？
    请问{e}的是什么？
    {e}的东西是什么？
    找出{e}的物体，它是什么？
    {e}的那个是什么？""",
)
_add(
    "bigger",
    """Which is bigger, the {a} or the {b}?
    Which one is larger, the {a} or the {b}?
    What is bigger: the {a} or the {b}?
    Between the {a} and the {b}, which is bigger?
    Which has a larger size, the {a} or the {b}?
    Compare the {a} and the {b}. Which is bigger?
    Is the {a} or the {b} bigger?
    Tell me which is bigger, the {a} or the {b}.
    Of the {a} and the {b}, which is larger?
    Which is the bigger one, the {a} or the {b}?""",
    """{a}和{b}哪个更大？
    哪个更大，{a}还是{b}？
    {a}与{b}相比，哪个大？
    {a}和{b}中哪个比较大？
    比较{a}和{b}，哪个更大？
    {a}大还是{b}大？
    更大的是{a}还是{b}？
    请问{a}和{b}谁更大？
    {a}和{b}，哪一个大一些？
    {a}、{b}哪个大？""",
)
_add(
    "background",
    """What colour is the background?
    What color is the background?
    What is the background color?
    Which color is the background?
    Tell me the color of the background.
    What is behind the objects?
    Name the background colour.
    What color is behind the objects?
    The background is which color?
    Background color?""",
    """背景是什么颜色？
    背景颜色是什么？
    图片的背景是什么颜色？
    请问背景的颜色？
    背景是哪种颜色？
    说出背景的颜色。
    这张图的背景颜色是什么？
    背景的颜色是？
    画面背景是什么颜色的？
    告诉我背景的颜色。""",
)
_add(
    "box",
    """Where is the {a}? Give its box.
    Give the bounding box of the {a}.
    Find the {a} and give its box.
    Locate the {a}.
    Draw a box around the {a}.
    Detect the {a}.
    Show me the box of the {a}.
    Give the coordinates of the {a}.
    What is the bounding box of the {a}?
    Mark the {a} with a box.""",
    """给出{a}的边界框。
    用方框标出{a}。
    {a}的坐标是多少？
    定位{a}。
    找出{a}并给出边界框。
    请框出{a}。
    检测{a}。
    {a}的边界框是什么？
    标出{a}的位置框。
    请给出{a}的坐标。""",
)
_add(
    "read",
    """What does the text say?
    What is written in the picture?
    Read the text.
    What text is in the image?
    What is written here?
    What does it say?
    Read what is written.
    Which word is in the picture?
    What does the sign say?
    Transcribe the text in the image.
    Can you read the text?
    Please read the text in this picture.""",
    """图中写了什么？
    文字是什么？
    读出图中的文字。
    图片上写着什么？
    上面写的是什么？
    请读一下文字。
    图里的文字是什么？
    这里写着什么？
    写的是什么字？
    识别图中的文字。
    请识别图片里的文字。""",
)
_add(
    "read_which",
    """What does the {w} text say?
    Read the {w} text.
    What is the {w} text?
    What is written in the {w} text?
    Read only the {w} text.
    What does the {w} word say?
    What is the {w} word?
    Tell me what the {w} text says.
    Please read the {w} text.
    The {w} text says what?""",
    """{w}的文字是什么？
    读出{w}的文字。
    {w}的文字写了什么？
    {w}写的是什么？
    请读{w}的文字。
    只读{w}的文字。
    {w}的字是什么？
    请问{w}的文字是什么？
    {w}的文字内容是什么？
    识别{w}的文字。""",
)
_add(
    "text_colour",
    """What color is the text?
    What colour is the text?
    What color are the letters?
    Which color is the text?
    What is the color of the text?
    Tell me the color of the text.
    In what color is the text written?
    Name the color of the letters.
    The text has which color?
    What color is the writing?""",
    """文字是什么颜色？
    文字的颜色是什么？
    字是什么颜色的？
    请问文字是哪种颜色？
    图中文字是什么颜色？
    说出文字的颜色。
    字的颜色是什么？
    这些字是什么颜色？
    文字是哪种颜色的？
    告诉我文字的颜色。""",
)
_add(
    "any_text",
    """Is there any text?
    Is there text in the picture?
    Does the picture have text?
    Is something written in the picture?
    Do you see any text?
    Can you see any letters?
    Does the image contain text?
    Are there any words?
    Is anything written here?
    Any text in the image?""",
    """图中有文字吗？
    有文字吗？
    图片里有字吗？
    图上写了字吗？
    你看到文字了吗？
    图里有没有文字？
    这张图有字吗？
    是否有文字？
    画面里有文字吗？
    能看到字吗？""",
)
_add(
    "same",
    """Are the two pictures the same?
    Are these pictures the same?
    Are both images equal?
    Do the two images show the same thing?
    Is the second picture the same as the first?
    Are the pictures identical?
    Are the two images identical?
    Do both pictures show the same?
    Same or different?
    Is there no difference between the pictures?""",
    """两张图一样吗？
    这两张图片相同吗？
    两幅图是否相同？
    第二张图和第一张一样吗？
    这两张图是一样的吗？
    两张图片是不是一样？
    两张图有没有区别，是一样的吗？
    两张图内容相同吗？
    它们一样吗？
    这两幅图相同吗？""",
)
_add(
    "changed",
    """What changed?
    What is different?
    What is the difference between the pictures?
    What changed from the first picture to the second?
    What has changed in the second picture?
    Compare the two pictures.
    Find the difference.
    Tell me the difference.
    How do the two images differ?
    What is different in the second image?""",
    """有什么变化？
    有什么不同？
    两张图有什么区别？
    第二张图和第一张相比有什么变化？
    比较这两张图。
    找出不同之处。
    哪里不一样？
    两张图有什么不同？
    第二张图变了什么？
    说出两张图的区别。""",
)
_add(
    "more",
    """Which picture has more {a}?
    Which image has more {a}?
    In which picture are there more {a}?
    Which of the two pictures has more {a}?
    Where are there more {a}, in the first or the second picture?
    Does the first or the second picture have more {a}?
    Which picture shows more {a}?
    More {a}: the first or the second picture?
    Tell me which picture has more {a}.
    Which one has more {a}?""",
    """哪张图的{a}更多？
    哪张图片里{a}更多？
    第一张还是第二张的{a}更多？
    两张图中哪张{a}多？
    {a}更多的是哪张图？
    哪幅图有更多的{a}？
    请问哪张图{a}多？
    比较两张图，哪张的{a}更多？
    哪一张{a}更多？
    哪张图有更多{a}？""",
)
_add(
    "direction",
    """In which direction does the {a} move?
    Which way does the {a} move?
    Where does the {a} move?
    In what direction is the {a} moving?
    How does the {a} move?
    Which way is the {a} going?
    Where is the {a} going?
    The {a} moves in which direction?
    Tell me the direction of the {a}.
    What is the direction of motion of the {a}?""",
    """{a}往哪个方向移动？
    {a}向哪边移动？
    {a}朝什么方向运动？
    {a}往哪边走？
    {a}的运动方向是什么？
    请问{a}向哪个方向移动？
    视频里{a}往哪里移动？
    {a}在往哪个方向动？
    {a}朝哪边移动？
    告诉我{a}的移动方向。""",
)
_add(
    "video",
    """What happens in the video?
    Describe the video.
    What is happening?
    What does the video show?
    Describe what happens.
    What happens here?
    Tell me what happens in the video.
    What do you see in the video?
    What is happening in this video?
    Summarize the video.""",
    """视频里发生了什么？
    描述一下这个视频。
    视频里有什么？
    发生了什么？
    这个视频讲了什么？
    请描述视频内容。
    视频显示了什么？
    说说视频里发生了什么。
    你在视频里看到了什么？
    总结一下视频。""",
)
_add(
    "order",
    """Which shape appears {o}?
    What appears {o}?
    Which object appears {o}?
    Which object comes {o}?
    What do you see {o}?
    What is shown {o}?
    Which shape is shown {o}?
    What comes {o} in the video?
    Tell me what appears {o}.
    Which shape comes {o}?""",
    """{o}出现的是什么？
    什么{o}出现？
    哪个图形{o}出现？
    {o}出现的物体是什么？
    视频里{o}出现的是什么？
    {o}看到的是什么？
    {o}出现的形状是什么？
    请问{o}出现的是哪个？
    {o}显示的是什么？
    告诉我{o}出现的是什么。""",
)
_add(
    "colour_at",
    """What color is the {a} {o}?
    What colour does the {a} have {o}?
    What color is the {a} {o} of the video?
    Tell me the color of the {a} {o}.
    Which color is the {a} {o}?
    What is the color of the {a} {o}?
    Name the color of the {a} {o}.
    The {a} has which color {o}?
    What color does the {a} have {o}?
    In the video, what color is the {a} {o}?""",
    """{a}{o}是什么颜色？
    {o}{a}是什么颜色？
    {a}{o}的颜色是什么？
    {o}，{a}是什么颜色的？
    视频{o}{a}是什么颜色？
    请问{a}{o}是哪种颜色？
    {o}时{a}的颜色是什么？
    {a}在{o}是什么颜色？
    说出{a}{o}的颜色。
    {o}的时候{a}是什么颜色？""",
)
_add(
    "grow",
    """Does the {a} grow or shrink?
    Does the {a} get bigger or smaller?
    Is the {a} getting bigger or smaller?
    Is the {a} growing or shrinking?
    Does the {a} become bigger or smaller?
    How does the size of the {a} change?
    Tell me whether the {a} grows or shrinks.
    Bigger or smaller: how does the {a} change?
    What happens to the size of the {a}?
    Does the size of the {a} go up or down?""",
    """{a}变大还是变小？
    {a}是变大了还是变小了？
    {a}的大小怎么变化？
    {a}在变大还是变小？
    视频里{a}变大还是变小？
    请问{a}变大了吗还是变小了？
    {a}的尺寸如何变化？
    {a}越来越大还是越来越小？
    {a}是在变大还是变小？
    {a}大小有什么变化？""",
)
_add(
    "transcribe",
    """Transcribe the speech.
    What is said?
    What does the speaker say?
    Please transcribe.
    Transcribe the audio.
    Write down what you hear.
    What did the person say?
    What do you hear?
    Transcribe this recording.
    Please write what is said.
    Repeat what is said.
    Transcribe.""",
    """请转写这段语音。
    说了什么？
    说话人说了什么？
    写出你听到的内容。
    把语音转成文字。
    请听写。
    这段录音说了什么？
    你听到了什么？
    转写音频。
    请写下所说的话。
    音频里说的是什么？""",
)
_add(
    "gender",
    """Is the speaker a man or a woman?
    Is this a male or a female voice?
    Male or female?
    Is the voice male or female?
    Who is speaking, a man or a woman?
    Is it a man or a woman speaking?
    What is the gender of the speaker?
    Does a man or a woman speak?
    Is the speaker male or female?
    Man or woman?""",
    """说话的是男人还是女人？
    是男声还是女声？
    说话人是男是女？
    这是男声还是女声？
    说话者的性别是什么？
    听起来是男的还是女的？
    请问是男声还是女声？
    说话的人是男性还是女性？
    男声还是女声？
    是男的在说话还是女的？""",
)
_add(
    "language",
    """Which language is spoken?
    What language is it?
    What language does the speaker use?
    Is it English or Chinese?
    In which language is it spoken?
    What language do you hear?
    Name the language.
    Which language do you hear?
    Does the speaker speak English or Chinese?
    What is the language of the speech?""",
    """说的是什么语言？
    这是什么语言？
    是中文还是英文？
    说话人用的是什么语言？
    请问是哪种语言？
    你听到的是什么语言？
    语音是什么语言？
    这段话是什么语言？
    是英语还是汉语？
    用的是哪种语言？""",
)
_add(
    "word_at",
    """What is the {o} word?
    Which word comes {o2}?
    What is the {o} word you hear?
    Tell me the {o} word.
    Name the {o} word.
    Which word is the {o} one?
    What {o} word does the speaker say?
    What is the {o} word of the sentence?
    The {o} word is what?
    What is the {o} word that is said?""",
    """{o}个词是什么？
    说的{o}个词是什么？
    {o}个单词是什么？
    请问{o}个词是什么？
    你听到的{o}个词是什么？
    告诉我{o}个词。
    句子的{o}个词是什么？
    {o}个单词是哪个？
    说出{o}个词。
    {o}个词是哪个？""",
)
_add(
    "said",
    """Does the speaker say "{w}"?
    Is the word "{w}" said?
    Do you hear the word "{w}"?
    Do you hear "{w}"?
    Can you hear the word "{w}"?
    Is "{w}" in the sentence?
    Did the person say "{w}"?
    Was the word "{w}" spoken?
    Does the word "{w}" occur?
    Did you hear "{w}"?""",
    """有没有说到“{w}”？
    听到“{w}”了吗？
    说了“{w}”吗？
    你听到“{w}”这个词了吗？
    有“{w}”这个词吗？
    说话人说了“{w}”吗？
    句子里有“{w}”吗？
    是否说到“{w}”？
    他说到“{w}”了吗？
    语音里有“{w}”吗？""",
)
_add(
    "number_said",
    """Which number is said?
    What number do you hear?
    Repeat the number.
    Write the number.
    Which number does the speaker say?
    What is the number?
    Tell me the number.
    Write down the number you hear.
    What number is it?
    Which number was spoken?""",
    """说的是哪个数字？
    你听到的数字是什么？
    重复这个数字。
    写出这个数字。
    说话人说了什么数字？
    数字是多少？
    告诉我这个数字。
    写下你听到的数字。
    是什么数字？
    请说出这个数字。""",
)

PLACES = {
    "en": (
        ("top left", "top center", "top right"),
        ("middle left", "center", "middle right"),
        ("bottom left", "bottom center", "bottom right"),
    ),
    "zh": (("左上角", "上方中间", "右上角"), ("左侧中间", "正中间", "右侧中间"), ("左下角", "下方中间", "右下角")),
}
SIDES = {
    "en": {"left": "left of", "right": "right of", "up": "above", "down": "below"},
    "zh": {"left": "左边", "right": "右边", "up": "上面", "down": "下面"},
}
SIDE_ANSWERS = {
    "en": {"left": "Left.", "right": "Right.", "up": "Above.", "down": "Below."},
    "zh": {"left": "左边。", "right": "右边。", "up": "上面。", "down": "下面。"},
}
MOVES = {
    "en": {"left": "left", "right": "right", "up": "up", "down": "down"},
    "zh": {"left": "左", "right": "右", "up": "上", "down": "下"},
}
YES = {"en": ("No.", "Yes."), "zh": ("没有。", "有。")}
TRUE = {"en": ("No.", "Yes."), "zh": ("不是。", "是。")}
