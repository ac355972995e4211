// Package nearest finds the name that somebody meant who mistyped it.
//
// Called where names come from a person: flags, commands, fields, models. Its one rule:
// it proposes nothing where nothing is alike.
package nearest

import "strings"

// Of returns the name most like the given one, or "" if none is.
func Of(name string, names []string) string {
	best, bestAt := "", min(len(name), 1+max(1, len(name)/3)) // of one letter nothing is alike
	for _, n := range names {
		if d := distance(strings.ToLower(name), strings.ToLower(n)); d < bestAt {
			best, bestAt = n, d
		}
	}
	return best
}

// distance returns how many letters must be changed, added or removed to make
// one name of the other. Long names are not compared.
func distance(a, b string) int {
	const tooLong = 64
	if len(a) > tooLong || len(b) > tooLong {
		return tooLong
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
