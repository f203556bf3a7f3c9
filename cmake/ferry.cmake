# What every target of ferry shares: warnings, sanitizers, and the two helpers that
# make a layer or a test out of the files of one folder.

add_library(ferry_options INTERFACE)
target_compile_options(ferry_options INTERFACE
  -Wall -Wextra -Wconversion -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual -Wimplicit-fallthrough -Werror
  # g++ 12 takes the value inside an optional or expected for uninitialised when it inlines its move.
  $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>
  # clang warns of typeid(*pointer) whether or not finding the pointer has side effects.
  $<$<CXX_COMPILER_ID:Clang>:-Wno-potentially-evaluated-expression>
  # For quoted includes only: src/sys/file.h must not stand before <sys/file.h>.
  "SHELL:-iquote ${CMAKE_SOURCE_DIR}/src")
target_compile_definitions(ferry_options INTERFACE _GNU_SOURCE FERRY_VERSION="${PROJECT_VERSION}")
if(FERRY_SANITIZE)
  target_compile_options(ferry_options INTERFACE -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer)
  target_link_options(ferry_options INTERFACE -fsanitize=address,undefined)
endif()

# ferry_fuzz(NAME LIBS library... SOURCES file...): one libFuzzer target, ferry_fuzz_NAME.  It names the few
# sources that it tries, so that `./test` need not build everything a second time.
function(ferry_fuzz name)
  if(NOT FERRY_FUZZ)
    return()
  endif()
  cmake_parse_arguments(ARG "" "" "LIBS;SOURCES" ${ARGN})
  add_executable(ferry_fuzz_${name} ${ARG_SOURCES})
  target_link_libraries(ferry_fuzz_${name} PRIVATE ferry_options ${ARG_LIBS})
  target_compile_options(ferry_fuzz_${name} PRIVATE -fsanitize=fuzzer)
  target_link_options(ferry_fuzz_${name} PRIVATE -fsanitize=fuzzer)
endfunction()

# ferry_layer(NAME DEPENDS layer...): a static library of all sources below the current folder,
# tests excluded.  Because a layer links only what it names, the build itself checks their order.
function(ferry_layer name)
  cmake_parse_arguments(ARG "" "" "DEPENDS" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*.cc)
  list(FILTER sources EXCLUDE REGEX "_test\\.cc$|_live\\.cc$|_fuzz\\.cc$")
  add_library(ferry_${name} STATIC ${sources})
  target_link_libraries(ferry_${name} PUBLIC ferry_options ${ARG_DEPENDS})
endfunction()
