//! From text to a parsed expression whose names are all known.

use std::ops::ControlFlow;

use arrow::datatypes::Schema;
use datafusion_sql::sqlparser::ast::{Expr, Ident, Query, Value, VisitMut, VisitorMut};
use datafusion_sql::sqlparser::dialect::GenericDialect;
use datafusion_sql::sqlparser::keywords::Keyword;
use datafusion_sql::sqlparser::parser::Parser;
use datafusion_sql::sqlparser::tokenizer::{Token, Tokenizer};

use super::{ExpressionError, functions};
use crate::error::nearest;

/// Most names, operators and keywords of an expression; lists of values (`in (...)`) do not count.
const WORDS_MAX: usize = 500;

/// Most levels of the parsed tree, of which `a + b + c` has three. The tree is walked by recursion, at about 13 KiB of
/// stack a level without optimisation, and a thread may have no more than 2 MiB.
const DEPTH_MAX: usize = 100;

/// Most brackets, `case`s and signs inside one another: parsing a level takes up to 70 KiB of stack without optimisation.
const BRACKETS_MAX: usize = 20;

/// Levels that a nested function or `case` counts for: planning one takes 70 KiB.
const DEPTH_OF_CALL: usize = 5;

/// Parses `sql` as one expression and resolves its names.
///
/// # Errors
/// If it is not one expression, is too long, or names a column or function that is not there.
pub fn parse(sql: &str, schema: &Schema) -> Result<Expr, ExpressionError> {
    let tokens = Tokenizer::new(&GenericDialect {}, sql).tokenize().map_err(|error| unreadable(sql, &error.message))?;
    let words = tokens
        .iter()
        .filter(|token| {
            !matches!(
                token,
                Token::Whitespace(_) | Token::Comma | Token::Number(..) | Token::SingleQuotedString(_) | Token::RParen
            )
        })
        .count();
    if tokens.iter().all(|token| matches!(token, Token::Whitespace(_))) {
        return Err(ExpressionError::new("the expression is empty"));
    }
    if words > WORDS_MAX {
        return Err(ExpressionError {
            message: format!("the expression has {words} names and operators; at most {WORDS_MAX} are allowed"),
            hint: Some("split it into columns with `derive`".into()),
        });
    }
    if brackets(&tokens) > BRACKETS_MAX {
        return Err(too_deep());
    }
    let mut parser = Parser::new(&GenericDialect {}).with_tokens(tokens);
    let mut parsed = parser.parse_expr().map_err(|error| unreadable(sql, &error.to_string()))?;
    let rest = parser.peek_token().token;
    if rest != Token::EOF {
        return Err(unreadable(sql, &format!("`{rest}` is not expected after `{parsed}`")));
    }
    match VisitMut::visit(&mut parsed, &mut Names { schema, depth: 0 }) {
        ControlFlow::Continue(()) => Ok(parsed),
        ControlFlow::Break(error) => Err(*error),
    }
}

fn unreadable(sql: &str, why: &str) -> ExpressionError {
    let why = why.trim_start_matches("sql parser error: ").replacen("Expected: ", "expected ", 1);
    ExpressionError::new(format!("can't read `{sql}` as SQL: {why}"))
}

fn too_deep() -> ExpressionError {
    let hint = Some("split it into columns with `derive`, or use `in (...)` for a long `or`".into());
    ExpressionError { message: "the expression is nested too deep".into(), hint }
}

/// How deep brackets, `case`s and signs (`not not`, `- -`) stand inside one another.
fn brackets(tokens: &[Token]) -> usize {
    let (mut depth, mut signs, mut deepest) = (0usize, 0, 0);
    for token in tokens {
        match token {
            Token::Whitespace(_) => continue,
            Token::Minus | Token::Plus | Token::Tilde => signs += 1,
            Token::Word(word) if word.keyword == Keyword::NOT => signs += 1,
            _ => signs = 0,
        }
        match token {
            Token::LParen | Token::LBracket | Token::LBrace => depth += 1,
            Token::RParen | Token::RBracket | Token::RBrace => depth = depth.saturating_sub(1),
            Token::Word(word) if word.keyword == Keyword::CASE => depth += 1,
            Token::Word(word) if word.keyword == Keyword::END => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth + signs);
    }
    deepest
}

fn one_value(expression: &Expr) -> ExpressionError {
    ExpressionError::new(format!("`{expression}` is about a list or a structure, and a column holds one value"))
}

struct Names<'a> {
    schema: &'a Schema,
    depth: usize,
}

type Flow = ControlFlow<Box<ExpressionError>>;

impl Names<'_> {
    /// The exact column as one quoted identifier: whatever it contains, the planner takes it whole.
    fn column(&self, name: &str) -> Result<Expr, ExpressionError> {
        if self.schema.column_with_name(name).is_some() {
            return Ok(Expr::Identifier(Ident::with_quote('"', name)));
        }
        let hint = nearest(name, self.schema.fields().iter().map(|field| field.name().as_str()));
        Err(ExpressionError { message: format!("there is no column `{name}`"), hint })
    }

    fn expression(&self, expression: &mut Expr) -> Result<(), ExpressionError> {
        match expression {
            Expr::Identifier(name) => *expression = self.column(&name.value)?,
            Expr::CompoundIdentifier(parts) => {
                let parts: Vec<&str> = parts.iter().map(|part| part.value.as_str()).collect();
                *expression = self.column(&parts.join("."))?;
            }
            Expr::Function(function) if function.over.is_some() => {
                return Err(ExpressionError {
                    message: format!("`{}` over a window needs many rows, and an expression sees one", function.name),
                    hint: Some("aggregate over a window in a feature group, under `features`".into()),
                });
            }
            Expr::Function(function) => functions::registry().check(&function.name.to_string())?,
            Expr::CompoundFieldAccess { .. } | Expr::JsonAccess { .. } | Expr::Array(_) | Expr::Dictionary(_) => {
                return Err(one_value(expression));
            }
            Expr::Map(_) | Expr::Struct { .. } | Expr::Tuple(_) | Expr::Lambda(_) => return Err(one_value(expression)),
            Expr::Value(value) if matches!(value.value, Value::Placeholder(_)) => {
                return Err(ExpressionError::new(format!("`{expression}` is a placeholder; write the value")));
            }
            Expr::Wildcard(_) | Expr::QualifiedWildcard(..) => {
                return Err(ExpressionError::new("`*` is not a value; name the column"));
            }
            _ => {}
        }
        Ok(())
    }
}

fn depth(expression: &Expr) -> usize {
    match expression {
        Expr::BinaryOp { .. } | Expr::Nested(_) | Expr::UnaryOp { .. } => 1,
        Expr::Identifier(_) | Expr::CompoundIdentifier(_) | Expr::Value(_) => 1,
        _ => DEPTH_OF_CALL,
    }
}

impl VisitorMut for Names<'_> {
    type Break = Box<ExpressionError>;

    fn pre_visit_query(&mut self, _query: &mut Query) -> Flow {
        let message = "a subquery needs other rows, and an expression sees one";
        let hint = Some("read other streams through a feature group, under `features`".into());
        ControlFlow::Break(Box::new(ExpressionError { message: message.into(), hint }))
    }

    fn pre_visit_expr(&mut self, expression: &mut Expr) -> Flow {
        self.depth += depth(expression);
        if self.depth > DEPTH_MAX {
            return ControlFlow::Break(Box::new(too_deep()));
        }
        match self.expression(expression) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(Box::new(error)),
        }
    }

    fn post_visit_expr(&mut self, expression: &mut Expr) -> Flow {
        self.depth -= depth(expression);
        ControlFlow::Continue(())
    }
}
