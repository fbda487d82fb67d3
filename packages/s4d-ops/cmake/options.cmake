# Three-valued switches and the rule for what the machine lacks.

set(S4D_BUILT "" CACHE INTERNAL "")
set(S4D_LEFT_OUT "" CACHE INTERNAL "")

function(s4d_switch name default help)
  set(${name} ${default} CACHE STRING "${help}: AUTO, ON or OFF")
  set_property(CACHE ${name} PROPERTY STRINGS AUTO ON OFF)
  string(TOUPPER "${${name}}" value)
  if(value MATCHES "^(1|YES|TRUE)$")
    set(value ON)
  elseif(value MATCHES "^(0|NO|FALSE)$")
    set(value OFF)
  elseif(value STREQUAL "")
    set(value ${default})
  elseif(NOT value MATCHES "^(AUTO|ON|OFF)$")
    message(FATAL_ERROR "${name} must be AUTO, ON or OFF, not '${${name}}'")
  endif()
  set(${name} ${value} CACHE STRING "${help}: AUTO, ON or OFF" FORCE)
endfunction()

# What was asked for explicitly and cannot be built is an error, else it is left out and reported.
function(s4d_cannot_build switch reason)
  if(${switch} STREQUAL "ON")
    message(FATAL_ERROR "${switch}=ON, but ${reason}")
  endif()
  set(S4D_LEFT_OUT "${S4D_LEFT_OUT};${switch}: ${reason}" CACHE INTERNAL "")
endfunction()

function(s4d_report)
  message(STATUS "s4d-ops builds: ${S4D_BUILT}")
  foreach(line IN LISTS S4D_LEFT_OUT)
    if(line)
      message(STATUS "s4d-ops leaves out ${line}")
    endif()
  endforeach()
endfunction()

# A shared library of one door: NAME becomes libNAME.so beside the Python package. Only what the
# sources mark for export is visible.
function(s4d_add_door name)
  add_library(${name} SHARED ${ARGN})
  target_link_libraries(${name} PRIVATE s4d_core_cpu)
  s4d_door_properties(${name})
endfunction()

function(s4d_door_properties name)
  if(NOT APPLE)
    # The thread pool's threads outlive any dlclose of the library: its code must stay mapped.
    target_link_options(${name} PRIVATE -Wl,-z,nodelete -Wl,--gc-sections
      "-Wl,--version-script,${CMAKE_CURRENT_SOURCE_DIR}/cmake/exports.map")
  endif()
  set_target_properties(${name} PROPERTIES SUFFIX ".so" SKIP_BUILD_RPATH ON)
  install(TARGETS ${name} LIBRARY DESTINATION lib RUNTIME DESTINATION lib)
  set(S4D_BUILT "${S4D_BUILT} ${name}" CACHE INTERNAL "")
endfunction()
