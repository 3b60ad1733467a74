"""The figures, one file each: `python -m experiments NAME`, or `all`.

A figure's file opens with what it shows, what it costs and what it reached, and ends with its `FIGURE`: a title, a
caption, and two pure functions, from a `Study` to numbers and from numbers to a picture. The numbers are JSON, so a
picture can be drawn again, and read by the report, without the runs.
"""
