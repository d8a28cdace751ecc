"""A small set-a: records of stays in intensive care, as PhysioNet publishes them, for the tests."""

import random
import zipfile

HEAD = "Time,Parameter,Value"
FIRST = [("Age", 60), ("Gender", 1), ("Height", -1), ("ICUType", 3), ("Weight", 80)]


def record(number, rows):
    """The text of a record, its descriptors at 00:00 and then rows of (HH:MM, name, value)."""
    lines = [f"00:00,RecordID,{number}", *(f"00:00,{name},{value}" for name, value in FIRST)]
    return "\n".join([HEAD, *lines, *(f"{time},{name},{value}" for time, name, value in rows)]) + "\n"


def write_stays(folder, records, died):
    """Writes the two files into a folder; `records` are texts by number, `died` outcomes by number."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / "set-a.zip", "w") as archive:
        for number, text in records.items():
            archive.writestr(f"set-a/{number}.txt", text)
    lines = [f"{number},6,1,5,-1,{outcome}" for number, outcome in died.items()]
    head = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death"
    (folder / "Outcomes-a.txt").write_text("\n".join([head, *lines]) + "\n")
    return folder


def some_stays(folder, count=40):
    """Random stays: heart rate and temperature at their own times on both days; the fast hearts die."""
    draw = random.Random(0)
    records, died = {}, {}
    for number in range(1000, 1000 + count):
        level, rows = draw.choice([60, 120]), []
        for hour in sorted(draw.sample(range(48), 8)):
            rows.append((f"{hour:02}:{draw.choice(['07', '31'])}", "HR", level + draw.randint(-5, 5)))
            if draw.random() < 0.5:
                rows.append((rows[-1][0], "Temp", 37 + draw.random()))
        records[number], died[number] = record(number, rows), int(level == 120)
    return write_stays(folder, records, died)
