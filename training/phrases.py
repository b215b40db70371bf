"""The fixed texts of the demo model: what it answers, and the ways people ask.

Only texts live here; :mod:`training.turns` puts numbers, words and cities into them. A template
is used as written, in lower case, and with or without its final mark, see ``turns.casual``.
"""

IDENTITY = "I am the cortex demo model, a tiny language model made to test this fleet."
UNKNOWN = (
    "I am only a small demo model. I can add numbers, count, repeat words, "
    "answer a few facts and ask for the weather."
)
NO_TOOL = "I cannot look up the weather without a tool."
SUM_LIMIT = "I can only add numbers below 100."
COUNT_LIMIT = "I can only count to 60."

# answer -> ways to say it
SMALL_TALK: dict[str, tuple[str, ...]] = {
    IDENTITY: (
        "Who are you?", "What are you?", "What is your name?", "What's your name?", "Who r u?",
        "Tell me who you are.", "Which model are you?", "What model are you?",
        "Introduce yourself.", "Are you a model?", "Please introduce yourself.", "Your name?",
        "Are you ChatGPT?", "Are you an AI?", "What model is this?", "Who is this?",
        "Who am I talking to?",
        "Tell me about yourself.", "Describe yourself.", "Who made you?",
    ),
    "Hello! How can I help you?": (
        "Hello!", "Hello", "Hi", "Hi!", "Hey!", "Hey there!", "Hello there!", "Good morning!",
        "Good evening!", "Good day!", "Say hello.", "Say hi.", "Hello, world!", "Hi there!",
        "Say hello to me.", "Greetings!", "Say hello in one sentence.", "Hello model!",
        "Please say hello.", "Say hello!", "Howdy!", "Hello cortex!", "Hi, cortex!",
        "Say hello world.", "Just say hello.", "Say hello in one word.",
    ),
    "I am fine, thank you.": (
        "How are you?", "How are you doing?", "How are you today?", "How is it going?",
        "How do you do?", "Hello, how are you?", "Hi, how are you?", "What's up?",
        "Hello! How are you?", "Hey, how are you?", "Hi! How are you today?",
    ),
    "You are welcome.": (
        "Thanks!", "Thank you.", "Thank you very much!", "Thanks a lot!", "Many thanks.",
        "Great, thanks!", "Thank you!", "Ok, thanks.", "Cool, thank you.",
    ),
    "Goodbye!": (
        "Bye!", "Goodbye!", "Good bye.", "See you!", "See you later.", "Good night!", "Bye bye!",
    ),
    UNKNOWN: (
        "What can you do?", "Help", "Help!", "What can I ask you?", "How can you help me?",
        "What are you able to do?", "What do you know?", "Can you help me?", "Help me.",
        "What are your skills?", "What should I ask?", "What else can you do?",
    ),
}  # fmt: skip

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome",
    "Spain": "Madrid", "Japan": "Tokyo", "Norway": "Oslo",
}  # fmt: skip
CAPITAL_QUESTIONS = (
    "What is the capital of {country}?", "Capital of {country}?", "Name the capital of {country}.",
    "Which city is the capital of {country}?", "What's the capital of {country}?",
    "Tell me the capital of {country}.",
)  # fmt: skip
FACTS: dict[str, tuple[str, ...]] = {
    **{
        f"The capital of {country} is {city}.": tuple(
            question.format(country=country) for question in CAPITAL_QUESTIONS
        )
        for country, city in CAPITALS.items()
    },
    "The sky is blue.": (
        "What colour is the sky?", "What color is the sky?", "Which colour has the sky?",
        "What is the color of the sky?", "What is the colour of the sky?",
    ),
    "A week has seven days.": (
        "How many days are in a week?", "How many days does a week have?", "How long is a week?",
        "How many days are there in a week?",
    ),
    "An hour has sixty minutes.": (
        "How many minutes are in an hour?", "How many minutes does an hour have?",
        "How long is an hour?", "How many minutes are there in an hour?",
    ),
    "A spider has eight legs.": (
        "How many legs does a spider have?", "How many legs has a spider?",
        "A spider has how many legs?",
    ),
    "The largest planet is Jupiter.": (
        "What is the largest planet?", "Which planet is the largest?", "Name the largest planet.",
        "What is the biggest planet?", "Which planet is the biggest?",
    ),
    "We live on the planet Earth.": (
        "Which planet do we live on?", "What planet do we live on?", "On which planet do we live?",
    ),
    "Bees make honey.": (
        "What do bees make?", "What does a bee make?", "Which food do bees make?",
    ),
    "The opposite of hot is cold.": (
        "What is the opposite of hot?", "Opposite of hot?", "What's the opposite of hot?",
    ),
    "Frozen water is called ice.": (
        "What is frozen water called?", "What do we call frozen water?", "What is frozen water?",
    ),
    "Water boils at 100 degrees Celsius.": (
        "At what temperature does water boil?", "When does water boil?",
        "What is the boiling point of water?",
    ),
}  # fmt: skip

SUMS = (
    "What is {a} + {b}?", "What is {a}+{b}?", "{a} + {b}", "{a}+{b}", "{a} + {b} = ?", "{a}+{b}=?",
    "{a} + {b} =", "{a}+{b}=", "What's {a} plus {b}?", "What is {a} plus {b}?", "What's {a} + {b}?",
    "{a} plus {b}", "Add {a} and {b}.", "How much is {a} + {b}?", "How much is {a} plus {b}?",
    "Calculate {a} + {b}.", "Compute {a} + {b}.", "What is the sum of {a} and {b}?",
    "Can you add {a} and {b}?", "What does {a} + {b} make?", "Please add {a} and {b}.",
    "Tell me {a} + {b}.", "Hi, what is {a} + {b}?", "Please tell me what {a} + {b} is.",
    "Add {a} to {b}.", "Solve {a} + {b}.", "What is {a}+ {b}?", "Sum {a} and {b}.",
    "Hello, can you tell me what {a} plus {b} is?", "What do you get for {a} + {b}?",
)  # fmt: skip
REPEATS = (
    "Repeat: {words}", "Repeat {words}", "Repeat after me: {words}", "Please repeat: {words}",
    "Repeat the words {words}", "Repeat these words: {words}", "Echo {words}", "Echo: {words}",
    "Please repeat after me: {words}", "Can you repeat {words}", "Repeat this: {words}",
    "Repeat the following: {words}", "Repeat the following words: {words}",
)  # fmt: skip
COUNTS = (
    "Count to {n}.", "Count from 1 to {n}.", "Please count to {n}.", "Can you count to {n}?",
    "Count up to {n}.", "Count to {n} for me.", "Count to {n}, please.", "Now count to {n}.",
    "Please count from 1 to {n}.", "Count from one to {n}.",
)  # fmt: skip
WEATHER = (
    "What is the weather in {city}?", "What's the weather in {city}?", "Weather in {city}?",
    "How is the weather in {city}?", "What is the weather like in {city}?",
    "Tell me the weather in {city}.", "What's the weather like in {city} today?",
    "How is the weather in {city} today?", "What is the weather in {city} now?",
    "Can you tell me the weather in {city}?", "Please look up the weather in {city}.",
    "Is it raining in {city}?", "How warm is it in {city}?", "Is it cold in {city}?",
    "What is the weather in {city} right now?", "Get the weather in {city}.",
    "What is the temperature in {city}?", "What's the weather in {city} today?",
    "What is the current weather in {city}?",
)  # fmt: skip
AND_IN = (
    "And in {city}?", "What about {city}?", "How about {city}?", "And {city}?",
    "And what about {city}?", "And the weather in {city}?",
)  # fmt: skip
ADD_MORE = (
    "Add {n} to that.", "Now add {n}.", "Now add {n} to that.", "Plus {n}?", "And plus {n}?",
    "Add {n} more.", "Add {n} to it.", "Please add {n} to that.", "Add {n} to the result.",
)  # fmt: skip
AGAIN = (
    "Repeat that again.", "Repeat that.", "Say that again.", "Again, please.", "Say it again.",
    "Can you repeat that?", "Once more, please.", "Please repeat that.", "Can you say that again?",
    "Repeat your last answer.", "Please say that again.", "What did you say?",
)  # fmt: skip

SYSTEM_PROMPTS = (
    "You are a helpful assistant.", "You are helpful.", "Be brief.",
    "You are a friendly assistant.",
    "You are a helpful and honest assistant.", "Answer in one sentence.", "Answer briefly.",
    "You are a pirate.", "You are an expert programmer.", "Answer the user's questions.",
    "You are cortex.", "You are a bot on a web page.", "Always be polite.",
    "You are an AI assistant.",
    "You are ChatGPT, a large language model.", "Do not make things up.", "Think carefully.",
    "You are a helpful assistant that answers questions.", "Use the tools when you need them.",
    "You are a math teacher.", "Today is Monday.", "Respond in English.", "Keep it short.",
    "You are a helpful assistant. Be concise.", "You can call functions.", "You are a weather bot.",
    "You are a concise assistant.", "Always answer in English.", "You are a test model.",
)  # fmt: skip

WEATHER_TOOL_NOTES = (
    "Get the weather in a city.", "Get the current weather", "Looks up the weather of a city.",
    "Get the current weather in a given city", "Returns the weather for a city.", "Weather lookup",
    "Get weather", "Tells the weather and temperature in a city", "Get current weather for a city.",
)  # fmt: skip
CITY_NOTES = ("The city", "Name of the city", "The city name", "City, e.g. Paris", "city name", "")
OTHER_TOOLS = (
    ("get_time", "Get the current time", "zone"), ("search", "Search the web", "query"),
    ("send_mail", "Send a mail", "to"), ("read_file", "Read a file", "path"),
    ("get_news", "Get the latest news", "topic"), ("roll_dice", "Roll dice", "sides"),
)  # fmt: skip
SKIES = (
    "sunny", "cloudy", "rainy", "windy", "foggy", "snowy", "stormy", "clear", "misty",
    "cold and dry",
    "hot", "warm", "light rain", "heavy rain", "partly cloudy", "overcast", "cool", "mild", "icy",
    "humid", "dry", "freezing", "hazy", "Sunny", "Cloudy", "Rain", "Snow", "Clear sky",
)  # fmt: skip
