"""`quantkit sweep`: many variants of one model from one file, measured alike.

sweep.yaml -> cells -> statistics shared by the cells that need the same -> variants, reports -> tables and pages

plan      what a sweep file says: the grid, and a recipe for each of its cells
store     the folder of a sweep: which cells are finished, and what they took
work      one pass of statistics, one cell
local     all of it in this process
cluster   all of it on a Ray cluster
"""
