package turns

import (
	"fmt"
	"slices"
	"strings"
)

// named is how many models a reason names at most.
const named = 3

// explain says of each unit without a place why.
func (t *table) explain() {
	holders := t.holders()
	for i := range t.places {
		u, p := &t.in.Units[i], &t.places[i]
		if p.Has {
			continue
		}
		holds := "there is no free node"
		if len(holders) > 0 {
			holds = "its place is held by " + holders
		}
		switch d := t.in.Demand[u.Model]; {
		case !t.possible(i):
			p.Hopeless, p.Why = true, t.lacks(u)
		case d.Waiting == 0 || t.serves(u.Model):
			p.Why = "asleep: " + holds
		case t.from(u.Model) != "":
			p.Why = fmt.Sprintf("asleep: it gets the place of %s as soon as what runs there has ended", t.from(u.Model))
		default:
			p.Why = fmt.Sprintf("asleep: %s, and waits for its turn", holds)
		}
	}
}

// lacks says why a unit can't have a place.
func (t *table) lacks(u *Unit) string {
	for _, name := range u.Nodes {
		if _, known := t.usable[name]; !known {
			return fmt.Sprintf("it can't be loaded: node %s, which its layout names, is not there, or drained", name)
		}
		if owner, taken := t.owner[name]; taken && !t.in.Units[owner].OnDemand {
			return fmt.Sprintf("it can't be loaded: node %s, which its layout names, serves %s, which is always loaded", name, t.in.Units[owner].Model)
		}
	}
	n := 0
	for name := range t.usable {
		if owner, taken := t.owner[name]; !taken || t.in.Units[owner].OnDemand {
			n++
		}
	}
	return fmt.Sprintf("it can't be loaded: it needs %d of the nodes that no model has that is always loaded, and there are %d", u.Stages, n)
}

// serves reports whether a unit of the model has a place.
func (t *table) serves(model string) bool {
	for i := range t.places {
		if t.places[i].Has && t.in.Units[i].Model == model {
			return true
		}
	}
	return false
}

// holders names the models that are loaded on demand and have places.
func (t *table) holders() string {
	var all []string
	for i := range t.places {
		if u := &t.in.Units[i]; u.OnDemand && t.places[i].Has {
			all = append(all, u.Model)
		}
	}
	return list(all)
}

// from names the models that are closing for a model.
func (t *table) from(model string) string {
	var all []string
	for i := range t.places {
		if t.places[i].For == model {
			all = append(all, t.in.Units[i].Model)
		}
	}
	return list(all)
}

// list lists names, each once.
func list(all []string) string {
	slices.Sort(all)
	all = slices.Compact(all)
	if len(all) > named {
		return fmt.Sprintf("%s and %d more", strings.Join(all[:named], ", "), len(all)-named)
	}
	return strings.Join(all, ", ")
}
