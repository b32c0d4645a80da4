package manifest

import "strings"

// IsEnvName says whether appc allows a name of an environment variable.
func IsEnvName(s string) bool {
	const first = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_"
	return s != "" && strings.Contains(first, s[:1]) && strings.Trim(s, first+"0123456789.-") == ""
}
