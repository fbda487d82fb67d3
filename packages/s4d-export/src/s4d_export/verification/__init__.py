"""Does the artifact compute what the checkpoint computes, and where do they part?"""
