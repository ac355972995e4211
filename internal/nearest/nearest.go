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

// distance returns how many letters must be changed, added, removed, or swapped with their
// neighbour to make one name of the other. Long names are not compared.
func distance(a, b string) int {
	const tooLong = 64
	if len(a) > tooLong || len(b) > tooLong {
		return tooLong
	}
	two, one, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1) // of i-2, i-1 and i letters of a
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		two, one, row = one, row, two
		row[0] = i + 1
		for j := range len(b) {
			change := one[j]
			if a[i] != b[j] {
				change++
			}
			row[j+1] = min(change, row[j]+1, one[j+1]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], two[j-1]+1)
			}
		}
	}
	return row[len(b)]
}
