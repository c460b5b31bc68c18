# tycho_embed(<target> <variable> <file>): makes the text of a file available to <target> as
#   namespace tycho::analyzer::assets { extern const char* const <variable>; }
function(tycho_embed target variable file)
  set(output "${CMAKE_CURRENT_BINARY_DIR}/assets/${variable}.cpp")
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${file}")
  file(READ "${file}" hex HEX)
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "\\\\x\\1" bytes "${hex}")
  # A line of the literal for each line of the file.
  string(REPLACE "\\x0a" "\\x0a\"\n\"" lines "${bytes}")
  file(CONFIGURE OUTPUT "${output}" CONTENT
"namespace tycho::analyzer::assets {
extern const char* const ${variable};
const char* const ${variable} =
\"@lines@\";
}  // namespace tycho::analyzer::assets
" @ONLY)
  target_sources(${target} PRIVATE "${output}")
endfunction()
