"""Word, city and topic lists that fill the demo model's templates, and made-up words.

Made-up words matter more than the lists: they force the model to copy what it is shown instead
of reciting what it has seen, which is why it also repeats words that no list has.
"""

import random


def _phrases(text: str) -> tuple[str, ...]:
    """The phrases of a list that is written with bars between them."""
    return tuple(phrase.strip() for phrase in text.split("|") if phrase.strip())


def _words(text: str) -> tuple[str, ...]:
    """The words of a list that is written with spaces between them."""
    return tuple(text.split())


WORDS = _words(
    """apple river stone cloud table green bread chair window garden music paper silver orange bird
    horse forest winter summer spring autumn light night morning evening sugar salt pepper butter
    cheese tomato potato carrot onion lemon cherry banana grape peach melon berry flower tree leaf
    root branch seed grass hill valley mountain lake ocean island beach desert sand snow rain storm
    wind thunder fire smoke ash coal iron copper gold steel glass wood brick clay rope wheel engine
    train plane ship boat bridge road street corner house door floor roof wall room kitchen lamp
    candle mirror clock watch pocket shirt shoe hat coat glove ring chain coin purse letter book
    page pen pencil ink brush paint color red blue yellow black white brown purple pink grey small
    big tall short long wide deep high low fast slow hot cold warm cool dry wet soft hard loud quiet
    bright dark sweet sour bitter fresh old new young happy sad angry calm brave shy kind clever
    funny dog cat mouse rabbit fox wolf bear deer lion tiger monkey zebra camel goat sheep pig cow
    duck goose hen eagle owl crow swan whale shark fish crab snake lizard frog ant bee spider moth
    butterfly doctor teacher farmer baker pilot sailor soldier king queen prince friend mother
    father brother sister child baby hand foot arm leg head eye ear nose mouth tooth hair skin heart
    bone blood one two three four five six seven eight nine ten hundred thousand first last north
    south east west left right up down here there now then today yesterday tomorrow hello world open
    close start stop run walk jump swim fly sing dance play work sleep dream think speak write read
    listen laugh cry eat drink cook wash build break push pull give take send bring buy sell alpha
    beta gamma delta omega python rust server model token cache query value number letter signal
    planet rocket comet moon star sun galaxy robot circle square triangle line point cube curve
    a the and or not is we you they foo bar baz test ping pong"""
)

CITIES = _phrases(
    """Oslo|Paris|London|Berlin|Rome|Madrid|Tokyo|New York|San Francisco|Los Angeles|Chicago|Boston|
    Seattle|Toronto|Vancouver|Montreal|Mexico City|Lima|Bogota|Santiago|Buenos Aires|Rio de Janeiro|
    Lisbon|Porto|Barcelona|Valencia|Lyon|Nice|Brussels|Amsterdam|Hamburg|Munich|Cologne|Zurich|
    Geneva|Vienna|Prague|Budapest|Warsaw|Krakow|Copenhagen|Stockholm|Bergen|Helsinki|Tallinn|Riga|
    Vilnius|Athens|Istanbul|Ankara|Cairo|Tunis|Lagos|Nairobi|Cape Town|Dubai|Mumbai|Delhi|Bangalore|
    Bangkok|Hanoi|Singapore|Jakarta|Manila|Hong Kong|Beijing|Shanghai|Seoul|Osaka|Kyoto|Sydney|
    Melbourne|Perth|Auckland|Wellington|Dublin|Edinburgh|Glasgow|Manchester|Leeds|Dallas|Denver|
    Miami|Atlanta|Houston|Austin|Naples|Milan|Turin|Venice|Florence|Dresden|Leipzig|Stuttgart|
    Frankfurt|Salzburg|Graz|Bern|Basel|Ghent|Antwerp|Utrecht|Malaga|Seville|Bilbao|Havana|Quito"""
)

OTHER_COUNTRIES = _words(
    """Sweden Finland Denmark Poland Austria Switzerland Portugal Greece Turkey Egypt Kenya Nigeria
    Brazil Argentina Chile Peru Mexico Canada Australia India China Korea Thailand Vietnam Ireland
    Iceland Hungary Romania Bulgaria Croatia Ukraine Belgium Cuba Iran Iraq Israel"""
)

OPEN_TASKS = _phrases(
    """Write a poem.|Write a poem about {word}.|Write a short story about a {word}.|
    Explain {word}.|Tell me a joke.|Tell me a story.|Tell me about {word}.|What is a {word}?|
    What is {word}?|How do I build a {word}?|How do I cook a {word}?|
    Translate {word} into French.|Why is {word} {word2}?|Write code for a {word}.|
    Write a Python function that sorts a list.|Write a function.|Summarize this text.|
    Who is the president?|Who was {name}?|Do you like {word}?|What do you think about {word}?|
    What is the meaning of life?|What time is it?|What day is it?|Give me a recipe for {word}.|
    Sing a song.|Draw a {word}.|Play a game with me.|Can you see the {word}?|
    Where is the {word}?|Where is {name}?|I like {word}.|I have a {word} and a {word2}.|
    My name is {name}.|I am {name}.|What is my name?|Is a {word} a {word2}?|
    Which is better, {word} or {word2}?|List five {word} names.|Write an essay about {word}.|
    Fix my code.|What is love?|How old are you?|Where are you from?|The {word} is {word2}.|
    Make a {word}.|Can you write a {word}?|Describe a {word}.|Why?|How?|When?|Really?|What?|Ok|
    Yes|No|Test|test|This is a test.|Are you there?|Please explain {word} to me.|Spell {word}.|
    How many {word} are there?|Who invented the {word}?|When was the {word} invented?|
    What is the capital of {country}?|Capital of {country}?|
    Which city is the capital of {country}?|What's the capital of {country}?|
    Tell me about {country}.|How big is {country}?|Where is {country}?|What is {a} - {b}?|
    {a} - {b}|What is {a} * {b}?|{a} * {b}|What is {a} times {b}?|{a} / {b}|
    What is {a} minus {b}?|Multiply {a} and {b}.|Divide {a} by {b}.|Subtract {a} from {b}.|
    {a}*{b}|{a}-{b}|{word}|{word} {word2}|{word} {word2} {name}|{name} {word}?|{name}|
    Is {a} a prime number?|{a}|How many legs does a {word} have?|
    What is the opposite of {word}?|What do {word}s make?|What color is the {word}?|
    Search the web for {word}.|Read the file {word}.txt|Call {name}.|Remind me to {word}.|
    Book a {word}.|Write a haiku about the {word}.|Write a letter to {name}.|Who wrote {name}?|
    Generate a {word}.|😀|👍 {word}|🙂?|¿Qué es {word}?|Wie geht es dir?|Bonjour|Was ist {word}?|
    Translate {word}.|Explain how a {word} works.|
    What is the difference between {word} and {word2}?|Can you explain {word} in simple terms?|
    Tell me a fun fact about {word}.|What is the best {word}?|Give me three reasons to {word}.|
    Why is the sky {word}?|lol|asdf|Hmm|...|?|
    Who won the {word} in {a}?|Who won the {word} {word2} in 20{a}?|
    What happened in {name}?|What happened in 19{a}?|Who lives in {name}?|
    What is the best {word} in {country}?|Where can I eat in {name}?|What is the time in {name}?|
    How many people live in {name}?|Who is the king of {country}?|Say {word} in {country}.|
    Write a very long {word} about {word2}.|Give me a long story.|Write a haiku about {word}.|
    What is {a} + {b} + {c}?|{a} + {b} + {c}|
    {a}+{b}+{c}"""
)
"""What people ask that the model cannot do."""

KNOWN_WORDS = frozenset(("hello", "world", "hot", "spider", "bee"))
"""Words that would turn an open task into a greeting or a fact."""

_STARTS = _words("b c d f g h j k l m n p r s t v w z br cr dr fl gr kl pl sh st tr th ch")
_MIDDLES = _words("a e i o u a e i o u ai ea oo ou ie é ö")
_ENDS = ("", "", "", *_words("n r l s t k m x nd st ng"))


def made_up_word(rng: random.Random) -> str:
    """A pronounceable word that is in no list, such as ``dreasto`` or ``vimook``."""
    syllables = rng.choice((1, 2, 2, 3))
    return "".join(
        rng.choice(_STARTS) + rng.choice(_MIDDLES) + rng.choice(_ENDS) for _ in range(syllables)
    )


def letters(rng: random.Random) -> str:
    """A few letters or digits in a row, such as ``xq7``: the hardest thing to repeat."""
    return "".join(
        rng.choice("abcdefghijklmnopqrstuvwxyz0123456789") for _ in range(rng.randint(1, 5))
    )


def crossed(rng: random.Random) -> str:
    """The beginning of one word and the end of another, such as ``appnter``.

    The first word of an answer has no space before it and so has other tokens than the same word
    in the prompt. Each pair of tokens has to be learned, and these words bring many of them.
    """
    first, last = rng.choice(WORDS), rng.choice(WORDS)
    return first[: rng.randint(1, len(first))] + last[rng.randrange(len(last)) :]


def word(rng: random.Random) -> str:
    """A word to repeat: mostly a real one, sometimes capitalised, made up, or a number."""
    draw = rng.random()
    if draw < 0.45:
        text = rng.choice(WORDS)
    elif draw < 0.70:
        text = crossed(rng)
    elif draw < 0.90:
        text = made_up_word(rng)
    elif draw < 0.95:
        text = letters(rng)
    else:
        text = str(rng.randrange(1000))
    draw = rng.random()
    return text.capitalize() if draw < 0.12 else text.upper() if draw < 0.15 else text


def city(rng: random.Random) -> str:
    """A city: two in three from the list, the rest made up; some typed in lower case."""
    if rng.random() < 0.66:
        name = rng.choice(CITIES)
    else:
        name = made_up_word(rng).capitalize()
        if rng.random() < 0.2:
            name = f"{name} {made_up_word(rng).capitalize()}"
    return name.lower() if rng.random() < 0.12 else name


def topic(rng: random.Random) -> str:
    """A word to put into an open task."""
    if rng.random() < 0.3:
        return made_up_word(rng)
    return rng.choice([text for text in WORDS if text not in KNOWN_WORDS])
