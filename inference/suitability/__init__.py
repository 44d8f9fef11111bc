"""Was the model made for a volume like this one?"""
