"""What leaves the house: directories that other programs open without code of ours."""
