// Package guest is what runs inside the virtual node: it installs the package,
// and asks the installed daemon on /run/gantry/gantry.sock for pods. Its tests
// change the machine they run on, and are built with the tag node alone.
package guest
