"""The code blocks and commands of the pages, run and compared with what the pages show.

pages.py     a page as blocks, each with the markers in front of it
runner.py    the blocks of a page in order, in one namespace and one folder
shell.py     the commands of a shell block, as bash understands them
programs.py  what can be said of a command without running it
regaze_command.py    `regaze`, parsed or run in this process
sentences.py    commands and options that sentences name
output.py    shown against printed
props.py     what a page takes for granted that its reader has
"""
