"""What pages are made of: words, rows, sections, tables and pictures, whoever writes them.

Guards and metrics write their own rows and sections with these; ``invarlock.reporting`` puts them
together.
"""
