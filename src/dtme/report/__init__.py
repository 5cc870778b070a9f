"""What an analysis found: the report, its table and its file.

- `report`: the report: rates of conflict, token spaces, sizes of gradients, and the plans that follow.
- `table`: rates as a table for the terminal.
- `notes`: what the samples have settled and what is noise, in sentences.
- `serialization`: a report as JSON, and back.
- `page`: a report as one page for a browser.
- `verdict`: what a report says, in sentences, before its figures.
- `style`: how the page looks, light, dark, on paper.
- `validation`: whether its fields can be what an analysis measured.
"""

from dtme._moved import moved

__getattr__ = moved("dtme.report", "ConflictReport")  # where 0.1.0 had the class, and its pickles look for it
