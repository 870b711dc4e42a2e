"""What happens when in a long video: windows over it, their scores, segments, and the files and
pictures of them.
"""
