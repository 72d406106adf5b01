from arforge.cli import main

main()
