"""The datasets this project knows: what each is, where it comes from and what its finished files must be."""

from __future__ import annotations

from recsys_core.assets import amazon, movielens, shared
from recsys_core.assets.asset import Asset
from recsys_core.assets.sources import Bundle, Shared, Url, Wheel

_GROUPLENS = "https://files.grouplens.org/datasets/movielens"
_SNAP = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"

ML_100K = Asset(
    "ml-100k",
    "MovieLens-100K: 100,000 ratings (1 to 5) of 1,682 films by 943 users, 1997-98",
    f"GroupLens: research use, no redistribution ({_GROUPLENS}/ml-100k-README.txt)",
    (
        Url(
            "ml-100k.zip",
            "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
            movielens.from_100k,
            f"{_GROUPLENS}/ml-100k.zip",
        ),
        Wheel(
            "recbole-1.2.1-py3-none-any.whl",
            "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
            movielens.from_recbole,
            "recbole==1.2.1",
        ),
    ),
    {
        "ratings.tsv": "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490",
        "items.tsv": "fafd14eb418fa2b83568c0e3ec5f5d10e5f6d132f7875dde03f5e202562a83cb",
        "users.tsv": "ebfc15ae31d953156371801b255597e5a549b8c8c2078cc542979ff10ba9bdff",
    },
)

ML_1M = Asset(
    "ml-1m",
    "MovieLens-1M: 1,000,209 ratings (1 to 5) of 3,706 films by 6,040 users, 2000-03",
    f"GroupLens: research use, no redistribution ({_GROUPLENS}/ml-1m-README.txt)",
    (
        Url(
            "ml-1m.zip",
            "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
            movielens.from_1m,
            f"{_GROUPLENS}/ml-1m.zip",
        ),
    ),
    {"ratings.tsv": None, "items.tsv": None, "users.tsv": None},
)

ML_20M = Asset(
    "ml-20m",
    "MovieLens-20M: 20,000,263 ratings (0.5 to 5) of 26,744 films by 138,493 users, 1995-2015",
    f"GroupLens: non-commercial, redistribution under the same conditions ({_GROUPLENS}/ml-20m-README.html)",
    (
        Url(
            "ml-20m.zip",
            "96f243c338a8665f6bcc89c53edf6ee39162a846940de6b7c8c48aeada765ff3",
            movielens.from_csv("ml-20m"),
            f"{_GROUPLENS}/ml-20m.zip",
        ),
    ),
    {"ratings.csv": None, "items.tsv": None},
)

_SMALL = ("ml-latest-small.zip", "696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436", movielens.from_csv("ml-latest-small"))

ML_LATEST_SMALL = Asset(
    "ml-latest-small",
    "MovieLens latest-small (September 2018): 100,836 ratings (0.5 to 5) of 9,724 films by 610 users; for development, not for results",
    f"GroupLens: non-commercial, redistribution under the same conditions ({_GROUPLENS}/ml-latest-small-README.html)",
    (Shared(*_SMALL), Url(*_SMALL, f"{_GROUPLENS}/ml-latest-small.zip")),
    {
        "ratings.csv": "aa289ca83157595d0df6aea1be6a4ded676ddc4385472e8313a8ed9805352646",
        "items.tsv": "e72747b551a0de05933d103f441ab4249317a2b9f772a616c6a3f915e9e09eef",
    },
)


def _amazon(name: str, category: str, sizes: str) -> Asset:
    build = amazon.from_gzip(category)
    files = (f"reviews_{category}_5.json.gz", f"meta_{category}.json.gz")
    return Asset(
        name,
        f"Amazon {category.replace('_', ' ')}, the 5-core of 2014: {sizes}; timestamps are days, so same-day reviews tie",
        "no explicit licence; research use, cite McAuley et al. 2015 (https://jmcauley.ucsd.edu/data/amazon/index_2014.html)",
        (Bundle(" and ".join(files), build, tuple(Url(file, None, build, f"{_SNAP}/{file}") for file in files)),),
        {"ratings.tsv": None, "items.jsonl": None},
    )


AMAZON = (
    _amazon("amazon-beauty", "Beauty", "198,502 ratings of 12,101 items by 22,363 users"),
    _amazon("amazon-sports", "Sports_and_Outdoors", "296,337 ratings of 18,357 items by 35,598 users"),
    _amazon("amazon-toys", "Toys_and_Games", "167,597 ratings of 11,924 items by 19,412 users"),
)

BEAUTY_S3REC = Asset(
    "beauty-s3rec",
    "Amazon Beauty as S3-Rec published it: 198,502 interactions, 12,101 items, 22,363 users; order only, no times. "
    "Same-day reviews stand in an order that leaks (later item ids later): compare on this very order and say so",
    "S3-Rec's public data, titles from TransRec's; no explicit licence, research use",
    (
        Bundle(
            "beauty/sequences.txt and beauty/items.jsonl",
            shared.copy_beauty,
            (
                Shared("beauty/sequences.txt", "226cce9c3105299ca0db9615d7d3fb32b3175e90da43100ae352599f0f0107b8", shared.copy_beauty),
                Shared("beauty/items.jsonl", "c73910909f43343e3419666319e7c03051d40f94354c38f9392ef7f1844555c8", shared.copy_beauty),
            ),
        ),
    ),
    {
        "sequences.txt": "226cce9c3105299ca0db9615d7d3fb32b3175e90da43100ae352599f0f0107b8",
        "items.jsonl": "c73910909f43343e3419666319e7c03051d40f94354c38f9392ef7f1844555c8",
    },
)

ML_1M_SEQUENCES = Asset(
    "ml-1m-sequences",
    "MovieLens-1M as gSASRec prepared it, without each user's last items: 987,019 interactions of 6,040 users; order only, no times. "
    "For lengths and throughput, not for accuracy",
    f"gSASRec's public data; GroupLens: research use, no redistribution ({_GROUPLENS}/ml-1m-README.txt)",
    (
        Shared(
            "ml-1m-sequences/train.txt",
            "06957b3d3cc937ac05e5f5ade2d2d5c1042efdd2b6779b768140e74d4f6b20e3",
            shared.number_sequences,
        ),
    ),
    {"sequences.txt": "c690aba7beb3827044125f34f74528bb0064745cbcca478380fb9d64d2a6d43d"},
)

_AGENT4REC = {
    "train.txt": "179b1f7ec8baf96953d22373721383673ef5897c4cde360dcfbf8ad83f946c56",
    "valid.txt": "3a57bc6891f7b7137a0b9c11d8ec736d47baf8ea36a0c1f8b332a599149454f8",
    "test.txt": "9f2c57f8af87139eb7d2a1ee5be33fdb2d58bf646040870042e3c52692b26b56",
    "movie_detail.csv": "01c883a0500cf7f2b030350e80a47138c5d4ba5689fe7426099f94cd472a7c5f",
}

AGENT4REC_ML_1M = Asset(
    "agent4rec-ml-1m",
    "Agent4Rec's 1,000 users of MovieLens-1M; no times: timestamp 0 is its train part, 1 valid, 2 test, the order in a part is unknown",
    "Agent4Rec repository: MIT; the ratings are MovieLens-1M's: research use, no redistribution",
    (
        Bundle(
            "agent4rec-ml-1m/{train,valid,test}.txt and movie_detail.csv",
            shared.join_agent4rec,
            tuple(Shared(f"agent4rec-ml-1m/{file}", digest, shared.join_agent4rec) for file, digest in _AGENT4REC.items()),
        ),
    ),
    {
        "parts.tsv": "b1d9b04b2a7a37a6eabeb48cee8e749976d4b40acf3d068e4515eed9a8feebb1",
        "items.tsv": "723b4ff0f3e161a9e32ea0b2feffd1916cab87c6cf55d0413cafe623b92877f5",
    },
)

DATASETS = (ML_100K, ML_1M, ML_20M, ML_LATEST_SMALL, *AMAZON, BEAUTY_S3REC, ML_1M_SEQUENCES, AGENT4REC_ML_1M)
