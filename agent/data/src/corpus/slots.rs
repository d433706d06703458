//! Values for a template's `{slot}`.

/// The name of a slot and its values.
pub(super) struct Slot {
    /// Name between the braces.
    pub(super) name: &'static str,
    /// Values, all equally likely.
    pub(super) values: &'static [&'static str],
}

const fn slot(name: &'static str, values: &'static [&'static str]) -> Slot {
    Slot { name, values }
}

#[rustfmt::skip]
pub(super) const SLOTS: [Slot; 25] = [
    slot("appliance", &[
        "dishwasher", "washing machine", "dryer", "coffee machine", "oven", "fan", "vacuum cleaner", "robot vacuum", "kettle",
        "air purifier", "humidifier", "heater", "iron", "toaster", "sprinkler", "pool pump", "extractor hood", "slow cooker",
        "rice cooker", "towel warmer",
    ]),
    slot("artist", &[
        "adele", "the beatles", "miles davis", "nina simone", "radiohead", "queen", "daft punk", "johnny cash", "bob marley",
        "fleetwood mac", "kendrick lamar", "björk", "the rolling stones", "billie eilish", "ella fitzgerald", "pink floyd",
        "aretha franklin", "metallica", "stevie wonder", "abba", "coldplay", "david bowie",
    ]),
    slot("city", &[
        "london", "berlin", "paris", "new york", "tokyo", "madrid", "oslo", "vienna", "chicago", "sydney", "toronto", "rome",
        "dublin", "cape town", "san francisco", "lisbon", "helsinki", "mumbai", "seoul", "zurich", "boston", "prague",
    ]),
    slot("colour", &[
        "red", "blue", "green", "purple", "orange", "pink", "yellow", "warm white", "cold white", "turquoise", "violet", "gold",
        "magenta", "teal", "amber", "lavender",
    ]),
    slot("day", &[
        "today", "tonight", "tomorrow", "tomorrow morning", "the day after tomorrow", "on monday", "on tuesday", "on wednesday",
        "on thursday", "on friday", "on saturday", "on sunday", "next monday", "next friday", "this weekend", "this evening",
        "next week", "on the 3rd", "on the 21st", "on may 5", "on july 14", "on the first of march", "on christmas eve",
    ]),
    slot("date", &[
        "today", "tonight", "tomorrow", "tomorrow morning", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday",
        "sunday", "next monday", "next friday", "this weekend", "this evening", "next week", "the 3rd", "the 21st", "may 5",
        "july 14", "the first of march", "christmas eve",
    ]),
    slot("degrees", &[
        "18 degrees", "19 degrees", "20 degrees", "21 degrees", "22 degrees", "23 degrees", "24 degrees", "17 celsius",
        "20 celsius", "65 degrees", "68 degrees", "70 fahrenheit", "72 degrees", "75 fahrenheit",
    ]),
    slot("duration", &[
        "30 seconds", "90 seconds", "2 minutes", "3 minutes", "5 minutes", "6 and a half minutes", "8 minutes", "10 minutes",
        "12 minutes", "15 minutes", "20 minutes", "25 minutes", "half an hour", "40 minutes", "45 minutes", "an hour",
        "1 hour", "an hour and a half", "2 hours", "3 hours", "90 minutes",
    ]),
    slot("event", &[
        "the dentist", "yoga class", "the team meeting", "lunch", "dinner", "the school play", "football practice",
        "the parents' evening", "the doctor's appointment", "the concert", "my flight", "the job interview", "piano lesson",
        "the birthday party", "the car service", "book club", "the wedding", "the haircut", "a video call", "the gym",
    ]),
    slot("food", &[
        "pasta", "eggs", "pizza", "rice", "cake", "bread", "potatoes", "tea", "chicken", "cookies", "lasagne", "soup",
        "roast", "muffins", "noodles",
    ]),
    slot("genre", &[
        "jazz", "rock", "classical", "hip hop", "country", "techno", "blues", "reggae", "folk", "pop", "metal", "soul",
        "opera", "funk", "eighties", "salsa",
    ]),
    slot("item", &[
        "milk", "eggs", "flour", "bread", "butter", "cheese", "apples", "bananas", "pears", "coffee", "toilet paper",
        "washing powder", "dish soap", "batteries", "tomatoes", "onions", "olive oil", "rice", "chicken", "fish", "yoghurt",
        "cat food", "light bulbs", "toothpaste", "sugar", "salt", "carrots", "orange juice", "candles", "nails",
    ]),
    slot("light", &[
        "light", "lights", "lamp", "ceiling light", "floor lamp", "reading lamp", "spotlights", "led strip", "desk lamp",
        "chandelier", "wall lights", "fairy lights", "night light",
    ]),
    slot("list", &[
        "shopping", "grocery", "packing", "to do", "party", "hardware store", "weekend", "camping", "supermarket", "gift",
    ]),
    slot("percent", &[
        "10 percent", "15 percent", "20 percent", "25 percent", "30 percent", "40 percent", "50 percent", "60 percent",
        "70 percent", "75 percent", "80 percent", "90 percent",
    ]),
    slot("person", &[
        "anna", "tom", "my mother", "dad", "mister weaver", "grandma", "lucy", "ahmed", "the kids", "doctor lee", "maria",
        "my boss", "sophie", "uncle joe", "the neighbours", "priya",
    ]),
    slot("podcast", &[
        "science weekly", "the daily brief", "history hour", "startup stories", "the garden show", "true crime tonight",
        "planet money", "space talk", "the kitchen table", "mind matters", "football focus", "bedtime tales",
    ]),
    slot("room", &[
        "kitchen", "living room", "bedroom", "bathroom", "hallway", "garage", "office", "dining room", "nursery", "basement",
        "attic", "guest room", "kids' room", "study", "conservatory", "laundry room", "workshop",
    ]),
    slot("song", &[
        "yesterday", "bohemian rhapsody", "hello", "imagine", "take five", "summertime", "purple rain", "dancing queen",
        "blue moon", "feeling good", "wonderwall", "hotel california", "fly me to the moon", "here comes the sun",
        "stand by me", "walking on sunshine", "let it be", "africa",
    ]),
    slot("speaker", &[
        "music", "speaker", "tv", "television", "sound bar", "kitchen speaker", "stereo", "radio", "headphones", "tablet",
        "film", "song",
    ]),
    slot("station", &[
        "bbc radio four", "radio one", "classic fm", "jazz fm", "npr", "the local news station", "capital fm", "radio paradise",
        "fm 98.5", "the sports channel on the radio", "world service", "rock antenna", "kiss fm", "103.7 fm",
    ]),
    slot("task", &[
        "water the plants", "call the bank", "take out the bins", "feed the cat", "pay the rent", "pick up the parcel",
        "buy stamps", "walk the dog", "take my pills", "send the invoice", "renew my passport", "charge the car",
        "mail the letter", "book the flights", "return the library books", "clean the windows", "ring my sister",
        "defrost the freezer", "order a cake", "back up the laptop",
    ]),
    slot("time", &[
        "6 am", "6:30", "7 am", "7:15", "half past seven", "8 o'clock", "quarter past eight", "8:45", "nine thirty", "10 am",
        "10:20", "noon", "1 pm", "2:30", "three o'clock", "4 pm", "quarter to five", "5:45", "6 pm", "7:30 pm", "8 in the evening",
        "9 pm", "ten past ten", "11 pm", "midnight", "5 am",
    ]),
    slot("topic", &[
        "space", "cooking", "world history", "politics", "football", "gardening", "psychology", "economics", "true crime",
        "technology", "health", "parenting", "films", "travel",
    ]),
    slot("weekday", &["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]),
];
