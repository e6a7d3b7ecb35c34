"""Judges a feed-worker from outside.

Reads only the topics, the table and the bucket, decodes the source topic with code of its own,
and says what was lost, doubled, mis-filed or altered. Shares no code with the worker.
"""
