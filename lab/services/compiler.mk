# Six objects of one source, and a program of them.
NUMBERS = 1 2 3 4 5 6
OBJECTS = $(NUMBERS:%=%.o)

program: $(OBJECTS)
	gcc -o $@ $^

1.o: DEFINES = '-DALL=$(foreach n,$(NUMBERS),PART($n))'
$(OBJECTS): %.o: part.c
	gcc -O2 -g -DNUMBER=$* $(DEFINES) -c -o $@ $<
